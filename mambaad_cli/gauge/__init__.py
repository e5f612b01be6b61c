"""A study of the inspection as a gauge: repeated photos of known parts -> agreement, repeatability, parts that flip."""
