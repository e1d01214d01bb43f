"""A training run from its settings to what it leaves in a folder. What is shown of it is its observer's business."""
