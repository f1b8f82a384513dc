"""Image files byte by byte, in kinds that TensorFlow does not write."""

import base64
import struct
import zlib

import numpy as np
import tensorflow as tf


def png(value, shape=(4, 4, 1)):
    """A PNG file all of whose pixels have one value."""
    return tf.io.encode_png(np.full(shape, value, np.uint8)).numpy()


def raw_png(size, bits, kind, rows, *chunks):
    """A PNG file of any kind; `rows` without the byte of the filter."""
    scanlines = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def bmp(bits, rows, *, width, between=b"", compression=0, header=40):
    """A BMP file, its lowest row first; `between` are the masks or the palette."""
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    start = 14 + header + len(between)
    info = struct.pack("<IiiHHIIiiII", header, width, len(rows), 1, bits, compression, *[0] * 5)
    file = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return file + info + b"\0" * (header - 40) + between + pixels


GREY_PALETTE = b"".join(bytes([value, value, value, 0]) for value in range(256))
COLOUR_PALETTE = bytes([7, 8, 9, 0] * 256)

# 8x8 pixels of (200, 100, 50), written in four inks
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4LCxAW"
    "EBETFBUVFQwPFxgWFBgSFBUU/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAgHCf/EABQQ"
    "AQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMATQBZAEsAAD8AYCaBe1Tf/9k="
)


def gif(*frames):
    """A GIF file of 2x1 pixels, a pair a frame, in colours 0 (10, 20, 30) and 1 (40, 50, 60)."""
    file = b"GIF89a" + struct.pack("<HHBBB", 2, 1, 0x80, 0, 0) + bytes([10, 20, 30, 40, 50, 60])
    for first, second in frames:
        codes = [4, first, second, 5]  # of 3 bits: clear, two pixels, end
        packed = sum(code << 3 * i for i, code in enumerate(codes)).to_bytes(2, "little")
        file += b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 1, 0) + b"\x02\x02" + packed + b"\0"
    return file + b";"
