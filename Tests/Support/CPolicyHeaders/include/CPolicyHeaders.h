/* What the C headers of this host say about the names that policies use: the unit tests of module Policy compare its own
 * tables with these. In C because Swift does not import most of the macros. */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct policy_header_name {
    const char *name;
    uint64_t value;
};

struct policy_header_table {
    const struct policy_header_name *names;
    size_t count;
};

/* Constants that a seccomp policy may name (SystemConstants.values). */
struct policy_header_table policy_constants(void);

/* Errnos (SystemConstants.errnos). */
struct policy_header_table policy_errnos(void);

/* Operations, register calls and flag bits of linux/io_uring.h, as far as Linux 6.1 has them (RingNames). */
struct policy_header_table policy_ring_operations(void);
struct policy_header_table policy_ring_register_operations(void);
struct policy_header_table policy_ring_flag_bits(void);
