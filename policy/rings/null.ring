# Target null: it moves no data.
@include common.ring
