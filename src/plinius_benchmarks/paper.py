"""What the paper measured: Plinius, DSN 2021, read off the vector paths of its figures.

The machines: emlSGX-PM has two Xeon Gold 5215, 40 cores, 4 Optane DIMMs, SGX in simulation;
sgx-emlPM a Xeon E3-1270 with SGX, persistent memory emulated in RAM. Good to 1-2 %.
"""

FIG_6_SWAPS = tuple(2**power for power in range(1, 12))
FIG_6 = {
    "CLFLUSH+NOP": {
        "native": (1.6, 3.1, 5.7, 10, 15.9, 23, 29.5, 34.7, 38.1, 40.1, 41.1),
        "SGX-Romulus": (0.4, 0.8, 1.6, 3.1, 5.5, 9.2, 13.9, 18.6, 22.6, 25.4, 26.9),
        "SCONE": (1.0, 2.1, 3.7, 6.1, 9.6, 13.8, 1.9, 4.0, 7.9, 15.0, 16.2),
    },
    "CLFLUSHOPT+SFENCE": {
        "native": (1.6, 3.1, 5.8, 10.2, 16.2, 23.4, 30.2, 35.4, 38.8, 40.8, 41.9),
        "SGX-Romulus": (0.4, 0.8, 1.6, 3.1, 5.5, 9.2, 13.8, 18.6, 22.5, 25.0, 26.5),
        "SCONE": (1.1, 2.1, 3.7, 6.1, 9.6, 14.0, 1.9, 4.0, 8.0, 15.3, 16.3),
    },
}
"""emlSGX-PM, swaps per microsecond by swaps a transaction."""

FIG_7_MB = (10, 22, 33, 44, 56, 67, 78, 89, 100)
FIG_7 = {
    "save, PM": (11.5, 25.1, 37.5, 50.7, 95.7, 115.8, 130.8, 155.9, 171.1),
    "save, SSD": (55.1, 99.7, 144.7, 201.7, 237.7, 285.6, 333.7, 378.6, 427),
    "restore, PM": (6.9, 14.1, 21.3, 28.8, 41.2, 49.3, 57.3, 65.7, 74.4),
    "restore, SSD": (27.1, 55.9, 84.4, 113.2, 142, 170.9, 198.5, 227.1, 257),
}
"""emlSGX-PM, milliseconds."""

TABLE_I = {"save": 0.697, "restore": 0.178}
"""emlSGX-PM: the share of writing in saving, of reading in restoring; the rest is AES-GCM."""

FIG_8_BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
FIG_8 = {
    "plain": (0.7, 1.2, 2.7, 5.5, 10.7, 21.3, 42.9, 85.6),
    "sealed": (0.7, 1.5, 3.2, None, 12.7, 25.1, 50.1, 100.2),
}
"""emlSGX-PM, seconds an iteration; one point is not legible."""
