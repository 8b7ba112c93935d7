/* GnuTLS, for the handshake of `ubd-nbd`, and what the kernel's TLS is told. */
#pragma once
#include <features.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

/* gnutls_free is a variable that points to a function, which Swift takes for shared mutable state. */
static inline void gnutls_ubd_free(void *memory) { gnutls_free(memory); }
