import Glibc
import NBDClient

exit(runNBD())
