import Glibc
import KernelABI
import Ring
import SystemCalls

/// The second ring of a queue, for the socket of its target. It has that one file, and no URING_CMD, which in the ublk ring would
/// reach the options of a socket.
///
/// The queue's thread sleeps in the ublk ring alone. While it does, a completion here signals an event; the ublk ring has a read of
/// that event under way, which wakes the thread. While the thread is awake nothing is signalled: it looks here by itself.
struct SocketRing: ~Copyable {
    var ring: Ring
    /// 8 bytes for the event's count, which nobody needs.
    private let count: UnsafeMutablePointer<UInt64>

    /// Places of the files: the event in the ublk ring's table, the socket in this ring's.
    static let eventFile: Int32 = 1
    static let socketFile: Int32 = 0
    /// The slot of the queue's own submission that reads the event.
    static let eventSlot: UInt8 = 0
    /// So often the socket is looked at before the ublk ring has its turn.
    static let mostRounds = 4

    init(_ ring: consuming Ring) {
        ring.signalEvent(false)
        self.ring = ring
        count = .allocate(capacity: 1)
        count.initialize(to: 0)
    }

    deinit { count.deallocate() }

    /// The read of the event. Mutating only so that it can be called in place, where it lies in an optional.
    mutating func eventRead() -> SubmissionEntry {
        .read(
            file: SocketRing.eventFile, into: UInt64(UInt(bitPattern: count)), length: 8, offset: 0,
            userData: RequestKey(ownSlot: SocketRing.eventSlot).rawValue)
    }
}

extension Queue {
    /// Begins to wait for the event; called once, when the queue begins to serve.
    @inline(__always)
    mutating func waitForEvent() {
        let entry = socket.pointee.eventRead()
        ledger.beginOwn(RequestKey(rawValue: entry.userData))
        ring.push(entry)
    }

    /// The read of the event has completed. Returns 0, or a negated errno as a loop's `turn` does.
    mutating func eventCame(_ result: Int32) -> Int {
        guard result == 8 || isPassing(Int(result)) else { return result < 0 ? Int(result) : -Int(EPROTO) }
        waitForEvent()
        return 0
    }
}

/// Lets the socket do what it is to do, and handles what has completed there, until there is nothing more or the ublk ring should
/// have its turn. Returns the number of completions that the ublk ring is to be waited for, 1 or 0, or a negated errno as a
/// loop's `turn` does.
@inline(__always)
func turnSocket<T: Target>(_ queue: inout Queue<T>, _ target: inout T) -> Int {
    var rounds = 0
    while rounds < SocketRing.mostRounds {
        target.useSocket(on: &queue)
        if queue.socket.pointee.ring.untaken == 0 {
            queue.socket.pointee.ring.signalEvent(true)
            if !queue.socket.pointee.ring.hasCompletions { return 1 }
            queue.socket.pointee.ring.signalEvent(false)
        } else {
            let status = queue.socket.pointee.ring.submit(waitingFor: 0)
            if status < 0, !isPassing(status) { return status }
        }
        let status = handleSocket(&queue, &target)
        if status < 0 { return status }
        rounds &+= 1
    }
    return 0
}

/// Handles all completions that are there on the socket. Returns 0, or a negated errno as a loop's `turn` does.
@inline(__always)
func handleSocket<T: Target>(_ queue: inout Queue<T>, _ target: inout T) -> Int {
    var completions = queue.socket.pointee.ring.completions()
    while let completion = completions.take() {
        let key = RequestKey(rawValue: completion.userData)
        guard key.isKind(.own), queue.ledger.finishOwn(key) else { return -Int(EPROTO) }
        target.finishOnSocket(key, result: completion.result, on: &queue)
    }
    queue.socket.pointee.ring.finish(completions)
    return queue.exitStatus == 0 || !queue.mustEnd() ? 0 : -Int(ENOTCONN)
}
