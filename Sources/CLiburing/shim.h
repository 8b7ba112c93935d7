/* liburing, which makes, maps, registers, restricts and enables rings. features.h comes first: liburing.h of Debian 12
 * defines _XOPEN_SOURCE, which would change fd_set. */
#include <features.h>
#include <liburing.h>
