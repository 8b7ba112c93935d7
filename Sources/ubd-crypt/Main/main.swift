import CryptClient
import Glibc

exit(runCrypt())
