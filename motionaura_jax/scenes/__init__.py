"""The rendered world, the embedded data and its ground truth: scenes, renderer, data sets, a reader that measures, adherence."""
