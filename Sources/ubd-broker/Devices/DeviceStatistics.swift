import CShims
import Glibc
import SystemCalls
import WorkerProtocol

/// The page in which a device's queues count, as the broker sees it: read-only, of a size that nobody can change any more
/// (a page that its writer could shrink would kill the reader with SIGBUS), and full of a stranger's claims.
final class DeviceStatistics {
    let file: FileDescriptor
    private let memory: Mapping
    let queues: Int
    /// When it was made, in seconds since 1970; a worker has no call that could change that.
    let since: Int64

    /// A new page, all zeros.
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

    /// The words mean what this broker takes them for; false while a worker of another version of ubd counts in them.
    private(set) var isReadable = true

    /// Asked when a worker begins to serve, before it has seen a user's request, and not again: it must not be able to switch
    /// off its own watchdog.
    func readLayout() {
        isReadable = (0..<queues).allSatisfy {
            [0, StatisticsPage.layout].contains(word(queue: $0, StatisticsPage.Word.layout))
        }
    }

    /// Each queue's own claims.
    var claims: [QueueStatistics] {
        (0..<queues).map { StatisticsPage.read(UnsafeRawPointer(memory.base), queue: $0) }
    }

    /// One of a queue's words; what it means, StatisticsPage tells.
    func word(queue: Int, _ word: Int) -> UInt64 {
        StatisticsPage.word(UnsafeRawPointer(memory.base), queue: queue, word)
    }

    /// Of all queues together. Whatever is written there, no sum overflows and no difference is negative.
    var total: QueueStatistics {
        claims.reduce(into: QueueStatistics()) { sum, part in
            sum.taken &+= part.taken
            sum.committed &+= part.committed
            sum.turns &+= part.turns
        }
    }
}
