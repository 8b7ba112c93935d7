import Glibc
import SystemCalls

/// A moment until which something may take.
struct Deadline: Sendable {
    private let end: UInt64

    init(milliseconds: Int) { end = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000 }

    init(seconds: Int) { self.init(milliseconds: seconds * 1000) }

    var hasPassed: Bool { monotonicNanoseconds() >= end }

    /// Milliseconds for poll(2), at least 1 as long as the deadline has not passed.
    func milliseconds() -> Int32 {
        let now = monotonicNanoseconds()
        guard now < end else { return 0 }
        return Int32(clamping: (end - now) / 1_000_000 + 1)
    }
}

/// What the program looks after while it waits for something else: that `ubd` is still there, that the server that it started
/// lives, and what that server prints.
final class Attention {
    private var sources: [(file: Int32, take: () -> Outcome)] = []

    enum Outcome {
        case goOn
        /// Nothing more will come of it.
        case finished
        /// What is waited for is not wanted any more.
        case giveUp
    }

    /// Calls `take` whenever the file can be read, or its other end is gone.
    func add(_ file: Int32, _ take: @escaping () -> Outcome) { sources.append((file, take)) }

    func remove(_ file: Int32) { sources.removeAll { $0.file == file } }

    /// Waits until the file has one of the events.
    ///
    /// - Throws: ETIMEDOUT when the deadline passes, ECANCELED when a source gave up.
    func wait(for file: Int32, _ events: Int32, _ deadline: Deadline) throws(SystemError) {
        try wait(forAny: [(file, events)], deadline)
    }

    /// The same for the first of several files.
    func wait(forAny files: [(file: Int32, events: Int32)], _ deadline: Deadline) throws(SystemError) {
        while true {
            var all = files.map { pollfd(fd: $0.file, events: Int16($0.events), revents: 0) }
            all += sources.map { pollfd(fd: $0.file, events: Int16(POLLIN), revents: 0) }
            let count = poll(&all, nfds_t(all.count), deadline.milliseconds())
            if count > 0 { try takeSources(all.dropFirst(files.count)) }
            if all.prefix(files.count).contains(where: { $0.revents != 0 }) { return }
            if deadline.hasPassed { throw SystemError("wait", ETIMEDOUT) }
        }
    }

    /// Waits for the sources alone.
    func pause(_ deadline: Deadline) throws(SystemError) {
        // poll(2) passes over a negative number.
        do { try wait(for: -1, 0, deadline) } catch { if error.errno != ETIMEDOUT { throw error } }
    }

    private func takeSources(_ polled: ArraySlice<pollfd>) throws(SystemError) {
        var isWanted = true
        for one in polled where one.revents != 0 {
            guard let source = sources.first(where: { $0.file == one.fd }) else { continue }
            switch source.take() {
            case .goOn: break
            case .finished: remove(one.fd)
            case .giveUp: isWanted = false
            }
        }
        if !isWanted { throw SystemError("wait", ECANCELED) }
    }
}
