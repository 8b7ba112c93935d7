# Target null: it moves no data.
@include common.ring
# In zero-copy mode it has no buffer: readers get zeros from /dev/zero instead of old memory.
in zero-copy op READ_FIXED
