import CShims
import Glibc

/// Waits until one of many files is ready (epoll(7), level-triggered).
public struct Poller: ~Copyable {
    private let epoll: FileDescriptor

    public struct Interest: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readable = Interest(rawValue: EPOLLIN.rawValue)
        public static let writable = Interest(rawValue: EPOLLOUT.rawValue)
        /// The other side closed. epoll always reports this, also when it is not requested.
        public static let hangUp = Interest(rawValue: EPOLLHUP.rawValue | EPOLLERR.rawValue)
    }

    public struct Event: Sendable {
        public let token: UInt64
        public let ready: Interest
    }

    public init() throws(SystemError) {
        epoll = FileDescriptor(owning: try call("epoll_create1") { epoll_create1(Int32(EPOLL_CLOEXEC)) })
    }

    public func add(_ fd: Int32, _ interest: Interest, token: UInt64) throws(SystemError) {
        try control(EPOLL_CTL_ADD, fd, interest, token)
    }

    public func modify(_ fd: Int32, _ interest: Interest, token: UInt64) throws(SystemError) {
        try control(EPOLL_CTL_MOD, fd, interest, token)
    }

    /// Call it before closing a descriptor whose open file has other descriptors: epoll would keep reporting that file.
    public func remove(_ fd: Int32) {
        _ = epoll_ctl(epoll.raw, EPOLL_CTL_DEL, fd, nil)
    }

    /// Waits for events, at most `milliseconds` (-1: no limit). Returns none when a signal interrupts the wait.
    public func wait(milliseconds: Int32, maximum: Int = 64) throws(SystemError) -> [Event] {
        var events = [epoll_event](repeating: epoll_event(), count: maximum)
        let count = epoll_wait(epoll.raw, &events, Int32(maximum), milliseconds)
        if count < 0 {
            if errno == EINTR { return [] }
            throw SystemError("epoll_wait", errno)
        }
        return events[0..<Int(count)].map { Event(token: $0.data.u64, ready: Interest(rawValue: $0.events)) }
    }

    private func control(_ operation: Int32, _ fd: Int32, _ interest: Interest, _ token: UInt64) throws(SystemError) {
        var event = epoll_event(events: interest.rawValue, data: epoll_data(u64: token))
        try call("epoll_ctl") { epoll_ctl(epoll.raw, operation, fd, &event) }
    }
}

/// Signals as readable events. They must be blocked in every thread; this blocks them in the calling thread.
public struct SignalReader: ~Copyable {
    public let file: FileDescriptor

    public init(_ signals: [Int32]) throws(SystemError) {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
        try call("sigprocmask") { sigprocmask(SIG_BLOCK, &set, nil) }
        let flags = Int32(SFD_CLOEXEC | SFD_NONBLOCK)
        file = FileDescriptor(owning: try call("signalfd") { signalfd(-1, &set, flags) })
    }

    /// The next pending signal; nil when none is pending.
    public func next() -> Int32? {
        var info = signalfd_siginfo()
        let size = MemoryLayout<signalfd_siginfo>.size
        return read(file.raw, &info, size) == size ? Int32(info.ssi_signo) : nil
    }
}

/// CLOCK_MONOTONIC in nanoseconds: for deadlines, never for dates.
public func monotonicNanoseconds() -> UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

/// An event that counts how often it was signalled (eventfd(2)); closed on exec.
public func makeEvent() throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try call("eventfd") { eventfd(0, Int32(EFD_CLOEXEC)) })
}
