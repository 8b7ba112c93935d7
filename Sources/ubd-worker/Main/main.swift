import Glibc
import Worker

exit(runWorker())
