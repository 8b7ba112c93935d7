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

    /// The name of every page begins so; its layout follows.
    private static let namePrefix = "ubd-statistics-"

    /// A new page, all zeros. Its name, which nobody can change, tells a later broker its layout.
    init(queues: Int) throws(SystemError) {
        let bytes = StatisticsPage.bytes(queues: queues)
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let name = "\(Self.namePrefix)\(StatisticsPage.layout)"
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create(name, flags) })
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

    /// Which layout the page has to which this link of /proc/PID/fd leads; nil when it is no page of a broker.
    static func layout(ofLink link: String) -> UInt32? {
        let (prefix, suffix) = ("/memfd:" + namePrefix, " (deleted)")
        guard link.hasPrefix(prefix), link.hasSuffix(suffix) else { return nil }
        let digits = link.dropFirst(prefix.count).dropLast(suffix.count)
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
            return nil
        }
        return UInt32(digits)
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
