"""`titokctl sample --fid REF`: the features of images while they are drawn, and the metrics once they are complete.

The features of every image are kept beside the samples, as `titokctl fid --save-features` keeps them; so the metrics
are those of `titokctl fid`, also when no images are kept and for other references later.
"""

from pathlib import Path
from typing import Any

from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import ExtractorOptions, open_extractor
from titokctl.evaluation.feature_pass import KEEP_OF_SAMPLES
from titokctl.evaluation.feature_set import FeatureCollector, FeatureSet
from titokctl.evaluation.image_set import Opening
from titokctl.evaluation.image_sets import open_images
from titokctl.evaluation.kept_features import save_features
from titokctl.formats.sample_set_writer import SampleSetWriter
from titokctl.jobs.evaluate.fid import fid
from titokctl.jobs.sample.record import SampleTask
from titokctl.progress import Progress


class FidRequest:
    """What to compare a sample set with.

    Args:
        reference: statistics or images.
        features: name of the feature network.
        options: its device, weights and precision.

    Raises: UsageError for an unknown network, UserError when the reference or the network's weights are not there.
    """

    def __init__(self, reference: Path, features: str, options: ExtractorOptions) -> None:
        if not reference.exists():
            raise UserError(f"no such file or folder: {reference}", "check what --fid names")
        self.reference, self.options = reference, options
        self.extractor = open_extractor(features, options)

    @property
    def description(self) -> dict[str, Any]:
        """What decides about the features, for the identity of the set."""
        return {"name": self.extractor.name, **self.extractor.description}

    def collected(self, writer: SampleSetWriter) -> FeatureSet:
        """The features of all images, batch by batch as `titokctl fid` takes them in."""
        count = len(writer.labels)
        collector = FeatureCollector(self.extractor.widths, count, KEEP_OF_SAMPLES)
        for first in range(0, count, self.extractor.batch_size):
            rows = min(self.extractor.batch_size, count - first)
            collector.add({name: writer.arrays[name].read(first, rows) for name in self.extractor.widths})
        return collector.result()

    def keep(self, folder: Path, features: FeatureSet, task: SampleTask, runs: Path, progress: Progress) -> None:
        """Write the features beside the finished set in `folder`."""
        opening = Opening(runs, progress.say, str(task.tokenizer.path), None, task.device)
        save_features(open_images(folder, opening), self.extractor, features, progress)

    def judge(
        self, folder: Path, task: SampleTask, runs: Path, progress: Progress, stop: StopRequest, group: Group
    ) -> dict[str, float]:
        """The metrics of the finished set in `folder`; all processes of the group call it."""
        found = fid(
            str(folder),
            str(self.reference),
            runs,
            features=self.extractor.name,
            options=self.options,
            tokenizer=str(task.tokenizer.path),
            progress=progress,
            stop=stop,
            group=group,
        )
        return found.metrics
