"""Frames of videos, cameras and streams in, one Prediction for each out. None is kept once it is judged."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageError
from mambaad_cli.data.video import Frame, source_of
from mambaad_cli.inspection.predict import Reading, check_class, predictions, product_of
from mambaad_cli.inspection.prediction import Prediction, PredictOptions
from mambaad_cli.inspection.scorer import Scorer
from mambaad_cli.side_by_side import in_order


def predict_frames(
    scorer: Scorer, frames: Iterable[Frame], options: PredictOptions, live: bool = False
) -> Iterator[Prediction]:
    """Score frames in their order.

    live: they come from cameras, so that each is judged as soon as it is there, and none waits for a batch.

    Raises MambaADError for a product that the model does not know, and for cameras where each photo has its own mask.
    """
    check_class(scorer.products, options.class_name)
    if live and scorer.preparation.own_masks:
        raise MambaADError("a camera has no mask of its own: fit with --roi, which holds for all photos of a product")

    def read(frame: Frame) -> Reading:
        file = frame.file
        told = options.class_name or product_of(file, scorer.products)
        if frame.picture is None:
            return file, told, ImageError(file.path, frame.error)
        try:
            return file, told, scorer.preparation.of_picture(frame.picture, told, frame.source.path)
        except ImageError as error:  # it has no mask
            return file, told, ImageError(error.path, error.reason)

    readings = map(read, frames) if live else in_order(read, frames, options.workers)
    options = replace(options, batch=1) if live else options
    return predictions(scorer.expecting(None), readings, options)


def confirmed(scored: Iterable[Prediction], in_a_row: int) -> Iterator[Prediction]:
    """The same predictions, of which a frame is anomalous only where it is the last of so many in a row that are.

    What counts are the frames of its own video or camera that were scored. A frame above the threshold that ends no
    such row has the verdict review, and a warning that says why; its score and threshold are what they are. A frame
    with any other verdict, or an error, ends a row.
    """
    lengths: Counter[str] = Counter()
    for prediction in scored:
        source = source_of(prediction.file)
        lengths[source] = lengths[source] + 1 if prediction.verdict == "anomalous" else 0
        if prediction.verdict == "anomalous" and lengths[source] < in_a_row:
            said = f"above the threshold in {lengths[source]} of {in_a_row} frames in a row"
            warning = f"{prediction.warning}; {said}" if prediction.warning else said
            prediction = prediction._replace(verdict="review", warning=warning)
        yield prediction
