/* Preloaded into the worker by StartupTests: lets /dev/null stand in for /dev/ublkcN. It takes any URING_CMD and answers
 * at once (Linux 6.1), as a driver with an endless row of requests; what it can't do is be mapped. So a mapping of
 * descriptor 4 becomes anonymous memory: descriptors full of zeros, which are reads of no sectors. */
#pragma once
