#include "CEscape.h"
