import BrokerInterface
import Glibc
import SystemCalls

/// Everything that a command uses besides its arguments, so that a test can replace it.
struct CommandEnvironment {
    var console: any Console
    /// The broker's socket.
    var socketPath: String
    var host: any Machine
    /// This program, for the helper process of `ubd partitions`.
    var executable: String
    /// The program that dials NBD servers; nil: the installed one.
    var dialer: String?
    /// The program that opens LUKS volumes; nil: the installed one.
    var unlocker: String?
    /// The server of a dialer that is killed becomes this process's child, which ends it: not in a process that has other children.
    var adoptsChildren = false
    /// CPUs that this host can have; nil: the C library's number.
    var processors: Int?
    /// The program that reads partition tables.
    var sfdisk = "/usr/sbin/sfdisk"
    /// The program that finds file systems, for `ubd mount`.
    var blkid = "/usr/sbin/blkid"
    /// Who brings the devices of a user back.
    var manager: (_ uid: UInt32) -> ServiceManager = ServiceManager.live(uid:)
    /// What a node in /dev must be.
    var identity: (_ node: String) throws(SystemError) -> DeviceFlush.Identity? = { (node) throws(SystemError) in
        try DeviceFlush.Identity.ofDisk(node)
    }
    /// Deadlines in seconds.
    var addSeconds = 60
    var callSeconds = 30
    /// For a server that is to be found, to be started perhaps, and to agree.
    var dialSeconds = 60
    var flushSeconds = 30
    /// For the look-up of a device's holder.
    var lookSeconds = 5
    /// For each read of a file's partition table.
    var tableSeconds = 30
    /// For a FUSE server that mounts, which may replay a journal first, and for one that ends.
    var mountSeconds = 120
    /// The broker may try the new program, drain the old worker, and go back to it.
    var upgradeSeconds = 120
    /// Nanoseconds of a monotonic clock.
    var now: () -> UInt64 = monotonicNanoseconds
    /// Seconds since 1970.
    var date: () -> Int64 = { Int64(time(nil)) }
    /// The terminal that shows the output; nil when it is none, as in a pipe.
    var screen: () -> Screen? = { nil }
    /// Seconds that a call may wait for its turn where a limit passes by itself.
    var turnSeconds = 120
    /// Asked while a command waits for the broker: true ends its call.
    var isInterrupted: () -> Bool = { false }
    /// Sleeps for that many milliseconds.
    var pause: (UInt64) -> Void = Self.sleep
    /// The same between two rounds of a command that runs until it is interrupted.
    var pauseWatching: (UInt64) -> Void = Self.sleep

    /// When a signal is held back (`Interruption`) it is a tenth of a second at most, but never nothing: somebody may try again.
    static func sleep(milliseconds: UInt64) {
        let end = monotonicNanoseconds() + milliseconds * 1_000_000
        while case let now = monotonicNanoseconds(), now < end {
            usleep(UInt32(min(end - now, 100_000_000) / 1000 + 1))
            if Interruption.hasCome { return }
        }
    }

    /// The same, in which a signal that is held back ends what waits for the broker.
    var interruptible: CommandEnvironment {
        var result = self
        result.isInterrupted = { Interruption.hasCome }
        return result
    }

    /// The environment of this process.
    static func live() -> CommandEnvironment {
        let variable = getenv(BrokerAPI.socketVariable).map { String(cString: $0) } ?? ""
        let console = StandardConsole()
        return CommandEnvironment(
            console: console, socketPath: variable.isEmpty ? BrokerAPI.socketPath : variable,
            host: LiveMachine(), executable: "/proc/self/exe", adoptsChildren: true,
            screen: { Screen.live }, pauseWatching: console.wait(milliseconds:))
    }
}
