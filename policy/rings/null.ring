# Target null: it moves no data.
@include common.ring
# But where it has no buffer of its own, whoever reads gets zeros from /dev/zero instead of old memory.
in zero-copy op READ_FIXED
