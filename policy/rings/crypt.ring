# Target crypt: reads and writes ciphertext in its file, and flushes it (FSYNC). A worker of a read-only device removes the last two
# (Targets/Crypt/CryptOpen.swift).
@include common.ring
op READ
op WRITE
op FSYNC
