# Target overlay: reads its base and its layer, and writes its layer. No FSYNC: the layer ends with the device, so nothing is to be
# flushed. The kernel lets nothing write the base, which the worker accepts only as opened for reading
# (Targets/Overlay/OverlayOpen.swift).
@include common.ring
# Also without a copy: a block of which a part is written comes into the layer through the worker's memory.
op READ
op WRITE
# Without a copy: between the files and the request's own pages, which the driver has registered with the ring.
in zero-copy op READ_FIXED
in zero-copy op WRITE_FIXED
# The queue waits with it for the thread that gives the space of discarded blocks back.
op FUTEX_WAIT
