import BrokerInterface
import Glibc
import SystemCalls

/// The broker's command line.
struct Configuration {
    var accessPolicy = "/etc/ubd/access.policy"
    var policyFolder = "/usr/share/ubd/policy"
    var workerProgram = "/usr/libexec/ubd/ubd-worker"
    var runFolder = "/run/ubd"
    var uidBase: UInt32 = 0x7000_0000
    var uidCount: UInt32 = 4096
    var workerGroup = "ubd-worker"
    /// -1000 to 1000, for every worker.
    var oomScore: Int32 = 0
    /// Seconds without progress after which a worker with work counts as hung.
    var ioTimeout = Int(AddPlan.usualIOTimeout)
    /// A device fails when more than `DeathLog.most` of its workers die within this many seconds.
    var deathWindow = 60
    /// The parent of the devices' control groups.
    var controlGroup = ControlGroupPlace.automatic
    /// Use plain command numbers, for drivers before Linux 6.4.
    var usesLegacyOpcodes = false
    /// Devices may be made on a kernel of the list `KnownBadKernel`.
    var allowsBadKernel = false
    var onlyChecks = false
    /// Delete all unused devices instead of serving.
    var takesDown = false
    /// Print the policies of this subject instead of serving.
    var dumps: String?

    var socketPath: String { runFolder + "/io.ubd.Broker" }

    /// The mode of operation.
    enum Command: Equatable {
        case run
        case help
        case version
    }

    /// An invalid option, described in one line.
    struct UsageError: Error, Equatable {
        let message: String
    }

    static let help = """
        usage: ubd-broker [options]

        Gives unprivileged users block devices: it owns /dev/ublk-control, checks each request against the access
        policy, and starts one confined worker for each device. It must run as root. It stays in the foreground and logs
        to stderr, one line per event.

          --access FILE         who may have which devices            [/etc/ubd/access.policy]
          --policy-dir DIR      sandbox policies: seccomp/, rings/    [/usr/share/ubd/policy]
          --worker FILE         the workers' program                  [/usr/libexec/ubd/ubd-worker]
          --run-dir DIR         socket, state and lock                [/run/ubd]
          --worker-group NAME   the workers' group; owns no file      [ubd-worker]
          --uid-base N          first uid for workers                 [1879048192]
          --uid-count N         number of these uids, one per worker  [4096]
          --oom-score N         of each worker, -1000 to 1000         [0]
          --io-timeout SECONDS  time without progress after which a
                                worker with requests is replaced,
                                2 to 3600                             [30]
          --death-window SECONDS
                                a device fails when more than 8 of
                                its workers die in this time, 1 to
                                3600                                  [60]
          --control-group DIR   parent of the workers' control groups:
                                an empty folder of cgroup v2; none;
                                or auto, the group of
                                ubd-workers.service                   [auto]
          --legacy-opcodes      use the command numbers of Linux before 6.4
          --allow-bad-kernel    make devices also on a kernel whose ublk is
                                known to take the host down
          --check-config        check the policies, print what they allow, then exit
          --dump-policy NAME    print the compiled policies for workers of target NAME, or for the broker itself
                                (broker), then exit
          --take-down           delete every unused device of all users, then exit: for the end of the host.
                                No other broker may run; ubd-shutdown calls this
          --foreground          accepted and ignored: the broker always stays in the foreground
          --help, --version

        Every file above must belong to root and be writable by nobody else, or the broker does not start.
        Exit status: 0 ended by SIGTERM or SIGINT; 1 could not start; 2 invalid usage or policy.

        """

    /// Parses a command line without the program's name.
    static func parse(_ arguments: [String]) throws(UsageError) -> (Command, Configuration) {
        var configuration = Configuration()
        var command = Command.run
        var rest = arguments[...]
        while let word = rest.popFirst() {
            let equals = word.firstIndex(of: "=")
            let name = String(word[..<(equals ?? word.endIndex)])
            var inline = equals.map { String(word[word.index(after: $0)...]) }
            func value() throws(UsageError) -> String {
                let typed = inline ?? rest.popFirst()
                inline = nil
                guard let text = typed else { throw UsageError(message: "\(name) needs a value") }
                // For example an unset variable: as a path it would mean the working folder.
                guard !text.isEmpty else { throw UsageError(message: "\(name) can not be ''") }
                return text
            }
            switch name {
            case "--access": configuration.accessPolicy = try value()
            case "--policy-dir": configuration.policyFolder = try value()
            case "--worker": configuration.workerProgram = try value()
            case "--run-dir": configuration.runFolder = try value()
            case "--worker-group": configuration.workerGroup = try value()
            case "--uid-base": configuration.uidBase = try number(name, try value(), 1000...WorkerUIDs.last)
            case "--uid-count": configuration.uidCount = try number(name, try value(), 1...65536)
            case "--oom-score": configuration.oomScore = try number(name, try value(), -1000...1000)
            case "--io-timeout": configuration.ioTimeout = try number(name, try value(), 2...3600)
            case "--death-window": configuration.deathWindow = try number(name, try value(), 1...3600)
            case "--control-group": configuration.controlGroup = ControlGroupPlace(option: try value())
            case "--legacy-opcodes": configuration.usesLegacyOpcodes = true
            case "--allow-bad-kernel": configuration.allowsBadKernel = true
            case "--check-config": configuration.onlyChecks = true
            case "--take-down": configuration.takesDown = true
            case "--dump-policy": configuration.dumps = try value()
            case "--foreground": break
            case "--help", "-h": command = .help
            case "--version": command = .version
            default: throw UsageError(message: "unknown option '\(word)'")
            }
            if inline != nil { throw UsageError(message: "\(name) takes no value") }
        }
        guard WorkerUIDs(base: configuration.uidBase, count: configuration.uidCount) != nil else {
            throw UsageError(
                message: "--uid-base \(configuration.uidBase) and --uid-count \(configuration.uidCount) go beyond the "
                    + "last uid, \(WorkerUIDs.last): give smaller numbers")
        }
        return (command, configuration)
    }

    /// Makes relative paths absolute, since the broker leaves its working folder.
    mutating func makeAbsolute(in folder: () -> String? = Configuration.workingFolder) throws(UsageError) {
        for path in [\Configuration.accessPolicy, \.policyFolder, \.workerProgram, \.runFolder]
        where !self[keyPath: path].hasPrefix("/") {
            guard let folder = folder() else {
                throw UsageError(message: "'\(self[keyPath: path])': the working folder is gone; give an absolute path")
            }
            self[keyPath: path] = "\(folder)/\(self[keyPath: path])"
        }
    }

    private static func workingFolder() -> String? {
        guard let path = getcwd(nil, 0) else { return nil }
        defer { free(path) }
        return String(cString: path)
    }

    private static func number<T: FixedWidthInteger>(
        _ name: String, _ text: String, _ range: ClosedRange<T>
    ) throws(UsageError) -> T {
        guard let value = T(text), range.contains(value) else {
            throw UsageError(
                message: "\(name) can not be '\(text)': give a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return value
    }
}
