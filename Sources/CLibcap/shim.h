/* libcap, which gives up capabilities in broker and launcher, and knows their names. */
#include <features.h>
#include <sys/capability.h>
