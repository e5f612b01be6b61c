from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.files import sha256_of
from mambaad_cli.inspection.corrections import Correction, photo_of, read_corrections

TEXT = '{"schema": 1, "corrections": [{"path": "in/a.png", "correct": "bad", "verdict": "good", "new": 1}]}'


def test_corrections_of_a_page_are_read(tmp_path: Path) -> None:
    (tmp_path / "corrections.json").write_text(TEXT)
    assert read_corrections(tmp_path / "corrections.json") == [Correction("in/a.png", "bad", "good")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", TEXT.replace("1, ", "2, "), TEXT.replace("bad", "worse"), TEXT.replace('"in/a.png"', "3")]
)
def test_what_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "corrections.json").write_text(text)
    with pytest.raises(MambaADError, match=r"corrections\.json holds no corrections of a report's page: [^\n]*$"):
        read_corrections(tmp_path / "corrections.json")
    with pytest.raises(MambaADError, match=r"^cannot read .*none\.json: "):
        read_corrections(tmp_path / "none.json")


def test_a_photo_is_found_from_here_or_beside_the_corrections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "in").mkdir(parents=True)
    photo = tmp_path / "out" / "in" / "a.png"
    photo.write_bytes(b"photo")
    file = tmp_path / "out" / "corrections.json"
    monkeypatch.chdir(tmp_path)
    known = Correction("in/a.png", "bad", digest=sha256_of(photo)[:16])
    assert photo_of(known, file).path == photo
    monkeypatch.chdir(tmp_path / "out")
    assert photo_of(known, Path("elsewhere/corrections.json")).path == Path("in/a.png")
    photo.write_bytes(b"another photo")
    with pytest.raises(MambaADError, match="is another photo now"):
        photo_of(known, file)
    photo.unlink()
    with pytest.raises(MambaADError, match="no such file"):
        photo_of(known, file)
