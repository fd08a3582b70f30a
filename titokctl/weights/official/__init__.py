"""The layout of bytedance/1d-tokenizer (commit 942a96f): config.json and tensor names, converted to ours and back."""
