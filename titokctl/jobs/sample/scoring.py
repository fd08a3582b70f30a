"""Scores of a sample set while it is drawn: `titokctl sample --fid REF`.

The features of every image are kept beside the samples, in the files of `titokctl fid --save-features`. So the metrics
equal those of `titokctl fid`, also when no images are kept, and for other references later.
"""

from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.evaluation.feature_pass import KEEP_OF_SAMPLES, Measured, save_features
from titokctl.evaluation.features import FeatureCollector, FeatureSet
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.formats.sample_set import SampleSetWriter
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.sample.inputs import SampleTask


class Judge:
    """A feature network, and the reference that a sample set is compared with.

    Args:
        fetch: download the network's weights if they are missing.

    Raises: UsageError for an unknown network, UserError when its weights are missing.
    """

    def __init__(self, reference: Path, network: FeatureNetwork, context: Context, fetch: bool) -> None:
        self._reference, self.network = reference, network
        self.extractor = network.open(context, fetch)

    @property
    def description(self) -> dict[str, Any]:
        """The settings that decide about the features, as JSON."""
        return {"name": self.extractor.name, **self.extractor.description}

    def collected(self, writer: SampleSetWriter) -> FeatureSet:
        """Return the features of all images, collected in the batches of `titokctl fid`."""
        count = len(writer.spec.labels)
        collector = FeatureCollector(self.extractor.widths, count, KEEP_OF_SAMPLES)
        for first in range(0, count, self.extractor.batch_size):
            rows = min(self.extractor.batch_size, count - first)
            collector.add({name: writer.arrays[name].read(first, rows) for name in self.extractor.widths})
        return collector.result()

    def keep(self, folder: Path, features: FeatureSet, task: SampleTask, context: Context) -> None:
        """Write the features beside the finished set in `folder`."""
        images = open_images(folder, Opening(context, str(task.tokenizer.path)))
        save_features(images, self.extractor, Measured(features, images.image_size), context)

    def metrics(self, folder: Path, task: SampleTask, context: Context) -> dict[str, float]:
        """Return the metrics of the finished set in `folder`; all processes of the group call this."""
        request = Fid(folder, self._reference, network=self.network, tokenizer=str(task.tokenizer.path))
        return request.run(context).metrics
