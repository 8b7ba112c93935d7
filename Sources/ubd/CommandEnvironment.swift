import BrokerInterface
import Glibc
import SystemCalls

/// All that a command takes from outside its arguments, so that a test can put something else in its place.
struct CommandEnvironment {
    var console: any Console
    /// Where the broker listens.
    var socketPath: String
    var host: any Machine
    /// This program, for the helper process of `ubd partitions`.
    var executable: String
    /// Reads partition tables.
    var sfdisk = "/usr/sbin/sfdisk"
    /// How long things may take, in seconds.
    var addSeconds = 60
    var callSeconds = 30
    var flushSeconds = 30
    /// For who holds a device.
    var lookSeconds = 5
    /// The broker may try the new program, drain the old worker, and go back to it.
    var upgradeSeconds = 120
    /// Nanoseconds of a clock that never goes back.
    var now: () -> UInt64 = monotonicNanoseconds
    /// How long a call may wait for its turn where a limit passes by itself.
    var turnSeconds = 120
    /// Does nothing for so many milliseconds.
    var pause: (UInt64) -> Void = Self.sleep
    /// The same between two looks of a command that goes on until somebody ends it.
    var pauseWatching: (UInt64) -> Void = Self.sleep

    static func sleep(milliseconds: UInt64) {
        let time = timespec(tv_sec: Int(milliseconds / 1000), tv_nsec: Int(milliseconds % 1000) * 1_000_000)
        var (left, asked) = (timespec(), time)
        while nanosleep(&asked, &left) != 0, errno == EINTR { asked = left }
    }

    /// The real one.
    static func live() -> CommandEnvironment {
        let variable = getenv(BrokerAPI.socketVariable).map { String(cString: $0) } ?? ""
        let console = StandardConsole()
        return CommandEnvironment(
            console: console, socketPath: variable.isEmpty ? BrokerAPI.socketPath : variable,
            host: LiveMachine(), executable: "/proc/self/exe", pauseWatching: console.wait(milliseconds:))
    }
}
