import Glibc
import SystemCalls

/// The broker's only thread: waits for ready files and due timers, and runs their handlers. Handlers must not wait for
/// a client, a worker or a device.
final class EventLoop {
    typealias Handler = (Poller.Interest) -> Void

    private struct Alarm {
        let time: UInt64
        let number: UInt64
        let action: () -> Void
    }

    private let poller: Poller
    private var handlers: [UInt64: Handler] = [:]
    /// Sorted by time.
    private var alarms: [Alarm] = []
    private var soon: [() -> Void] = []
    /// Calls of clients.
    private var turns = Turns()
    private var nextNumber: UInt64 = 1
    private var running = true

    init() throws(SystemError) {
        poller = try Poller()
    }

    /// A watched file. Its owner calls `unwatch` before closing the file.
    struct Watch {
        fileprivate let token: UInt64
        let fd: Int32
    }

    func watch(_ fd: Int32, _ interest: Poller.Interest, _ handler: @escaping Handler) throws(SystemError) -> Watch {
        let token = number()
        try poller.add(fd, interest, token: token)
        handlers[token] = handler
        return Watch(token: token, fd: fd)
    }

    func change(_ watch: Watch, _ interest: Poller.Interest) {
        // Fails only for a file that is not watched, which would be a bug.
        try? poller.modify(watch.fd, interest, token: watch.token)
    }

    func unwatch(_ watch: Watch) {
        poller.remove(watch.fd)
        handlers[watch.token] = nil
    }

    /// A scheduled action; see `cancel`.
    struct Timer {
        fileprivate let number: UInt64
    }

    @discardableResult
    func after(milliseconds: Int, _ action: @escaping () -> Void) -> Timer {
        let alarm = Alarm(
            time: monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000, number: number(), action: action)
        let index = alarms.firstIndex { $0.time > alarm.time } ?? alarms.count
        alarms.insert(alarm, at: index)
        return Timer(number: alarm.number)
    }

    func cancel(_ timer: Timer?) {
        guard let timer else { return }
        alarms.removeAll { $0.number == timer.number }
    }

    /// Runs an action after the current event, so that an operation ends without its callers on the stack.
    func later(_ action: @escaping () -> Void) {
        soon.append(action)
    }

    /// Runs an action when it is the turn of its party, and of its account within the party.
    func inTurn(of party: Turns.Party, _ account: UInt32, _ action: @escaping () -> Void) {
        turns.add(party, account, action)
    }

    func stop() {
        running = false
    }

    /// Runs until `stop`; can be called again.
    func run() throws(SystemError) {
        running = true
        while running {
            runSoon()
            for event in try poller.wait(milliseconds: waitingTime()) {
                // An earlier event of this batch may have ended the watch.
                handlers[event.token]?(event.ready)
                runSoon()
            }
            runAlarms()
            for action in turns.takeRound() {
                action()
                runSoon()
            }
        }
    }

    private func number() -> UInt64 {
        nextNumber += 1
        return nextNumber
    }

    private func runSoon() {
        while !soon.isEmpty {
            let actions = soon
            soon = []
            for action in actions { action() }
        }
    }

    private func runAlarms() {
        let now = monotonicNanoseconds()
        while let first = alarms.first, first.time <= now {
            alarms.removeFirst()
            first.action()
            runSoon()
        }
    }

    private func waitingTime() -> Int32 {
        if !soon.isEmpty || !turns.isEmpty { return 0 }
        guard let first = alarms.first else { return -1 }
        let now = monotonicNanoseconds()
        return first.time <= now ? 0 : Int32(min((first.time - now) / 1_000_000 + 1, 60_000))
    }
}
