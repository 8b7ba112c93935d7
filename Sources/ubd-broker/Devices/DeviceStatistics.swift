import CShims
import Glibc
import SystemCalls
import WorkerProtocol

/// The broker's view of a device's counters: a read-only mapping of fixed size (if the worker could shrink the file, it
/// could kill the broker with SIGBUS). The worker's values are not trusted.
final class DeviceStatistics {
    let file: FileDescriptor
    private let memory: Mapping
    let queues: Int
    /// The time of its creation, in seconds since 1970. A worker has no system call that changes it.
    let since: Int64

    /// A new page of zeros.
    init(queues: Int) throws(SystemError) {
        let bytes = StatisticsPage.bytes(queues: queues)
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ubd-statistics", flags) })
        try call("size a memfd") { ftruncate(file.raw, off_t(bytes)) }
        try call("seal a memfd") { fcntl(file.raw, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW) }
        memory = try Mapping.shared(file.raw, offset: 0, bytes: bytes, writable: false)
        since = Int64(try file.status().st_ctim.tv_sec)
        self.file = file
        self.queues = queues
    }

    /// The page of a worker that an earlier broker started.
    init(adopting file: consuming FileDescriptor, queues: Int) throws(SystemError) {
        let bytes = StatisticsPage.bytes(queues: queues)
        let seals = try call("seals of a memfd") { fcntl(file.raw, F_GET_SEALS) }
        guard seals & F_SEAL_SHRINK != 0, try file.status().st_size == off_t(bytes) else {
            throw SystemError("the statistics page is not sealed", EBADF)
        }
        memory = try Mapping.shared(file.raw, offset: 0, bytes: bytes, writable: false)
        since = Int64(try file.status().st_ctim.tv_sec)
        self.file = file
        self.queues = queues
    }

    /// Whether this broker knows the meaning of the words; false while a worker of a version with another layout writes
    /// them.
    private(set) var isReadable = true

    /// Called when a worker begins to serve, before it sees a user's request, and not again: a worker must not be able
    /// to disable its own watchdog.
    func readLayout() {
        isReadable = (0..<queues).allSatisfy {
            [0, StatisticsPage.layout].contains(word(queue: $0, StatisticsPage.Word.layout))
        }
    }

    /// The values that each queue reports.
    var claims: [QueueStatistics] {
        (0..<queues).map { StatisticsPage.read(UnsafeRawPointer(memory.base), queue: $0) }
    }

    /// One word of a queue; see StatisticsPage for its meaning.
    func word(queue: Int, _ word: Int) -> UInt64 {
        StatisticsPage.word(UnsafeRawPointer(memory.base), queue: queue, word)
    }

    /// The sums over all queues. With arbitrary content no sum traps and no difference is negative.
    var total: QueueStatistics {
        claims.reduce(into: QueueStatistics()) { sum, part in
            sum.taken &+= part.taken
            sum.committed &+= part.committed
            sum.turns &+= part.turns
        }
    }
}
