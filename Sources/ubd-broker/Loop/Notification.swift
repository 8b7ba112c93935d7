import Glibc
import SystemCalls

/// Sends notifications to systemd (sd_notify(3)); does nothing outside systemd.
enum Notification {
    /// Milliseconds between watchdog notifications: half of systemd's timeout; nil when systemd wants none
    /// (sd_watchdog_enabled(3)).
    static func watchdogPeriod(_ environment: (String) -> String?, pid: Int32 = getpid()) -> Int? {
        if let wanted = environment("WATCHDOG_PID"), wanted != String(pid) { return nil }
        guard let text = environment("WATCHDOG_USEC"), let microseconds = UInt64(text), microseconds > 0 else {
            return nil
        }
        return max(Int(clamping: microseconds / 2000), 1)
    }

    /// Milliseconds until a retry when systemd's socket was full. Any process may write to it and keep it full for a
    /// while, so waiting for room would stall all clients.
    private static let again = 50

    /// Sends watchdog notifications for as long as the loop runs.
    static func keepAlive(
        _ loop: EventLoop, every period: Int?,
        _ say: @escaping (String) -> Bool = { Notification.send($0, waiting: false) }
    ) {
        guard let period else { return }
        // The first one is sent after half of the timeout, which leaves as much time for retries.
        func next(in milliseconds: Int) {
            loop.after(milliseconds: milliseconds) { next(in: say("WATCHDOG=1") ? period : min(again, period)) }
        }
        next(in: period)
    }

    /// `waiting`: wait for room in systemd's socket. Returns false only when it had none; after other errors a retry
    /// would not help.
    @discardableResult
    static func send(_ state: String, waiting: Bool = true) -> Bool {
        attempt(state, waiting: waiting)?.errno != EAGAIN
    }

    static func send(_ state: String, waiting: Bool, to path: String) -> Bool {
        attempt(state, waiting: waiting, descriptor: nil, to: path)?.errno != EAGAIN
    }

    /// The same, with a descriptor that systemd gets with the message. Returns what prevented it; nil on success, and
    /// outside of systemd.
    static func attempt(_ state: String, waiting: Bool, descriptor: Int32? = nil) -> SystemError? {
        guard let variable = getenv("NOTIFY_SOCKET") else { return nil }
        return attempt(state, waiting: waiting, descriptor: descriptor, to: String(cString: variable))
    }

    private static func attempt(_ state: String, waiting: Bool, descriptor: Int32?, to path: String) -> SystemError? {
        guard var address = unixAddress(path) else { return SystemError("socket \(path)", ENAMETOOLONG) }
        // A name that begins with @ is in the abstract namespace.
        if path.hasPrefix("@") { address.sun_path.0 = 0 }
        let size = socklen_t(MemoryLayout<sa_family_t>.size + path.utf8.count + (path.hasPrefix("@") ? 0 : 1))
        do throws(SystemError) {
            let socket = FileDescriptor(
                owning: try call("socket") {
                    Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                })
            try call("connect \(path)") {
                withUnsafePointer(to: &address) { address in
                    connect(socket.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: address), size)
                }
            }
            try SystemCalls.send(socket.raw, Array(state.utf8), files: descriptor.map { [$0] } ?? [], wait: waiting)
            return nil
        } catch { return error }
    }
}
