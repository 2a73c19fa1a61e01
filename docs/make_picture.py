"""The picture of a report for the README: its top, as a browser shows it.

    python docs/make_picture.py [RUN=runs/quickstart] [OUT=docs/report.png]

Needs chromium. The colors are reduced to 64, which text and charts do not show and which keeps the file small.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

WIDTH, HEIGHT = 1180, 1240
LARGEST = 300_000
COLORS = 64


def main() -> None:
    """Make the picture."""
    run, out = (Path(given) for given in (*sys.argv[1:], *("runs/quickstart", "docs/report.png")[len(sys.argv) - 1 :]))
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("expected chromium, found none; apt-get install chromium")
    with TemporaryDirectory() as place:
        shot = Path(place) / "report.png"
        page = (run / "report.html").absolute().as_uri()
        size = f"--window-size={WIDTH},{HEIGHT}"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page], check=True, capture_output=True)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLORS).save(out, optimize=True)
    if out.stat().st_size > LARGEST:
        sys.exit(f"{out}: {out.stat().st_size} bytes, more than {LARGEST}")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
