import BrokerInterface
import Glibc
import SystemCalls
import Targets
import Varlink

/// The exit statuses of `ubd`, documented in `ubd --help` and ubd(1).
enum ExitStatus: Int32, CaseIterable {
    case success = 0
    case failed = 1
    case usage = 2
    case notPermitted = 3
    case noSuchDevice = 4
    case busy = 5
    case brokerNotReachable = 6
    case hostLacksSomething = 7

    /// For the table in the help.
    var meaning: String {
        switch self {
        case .success: "done"
        case .failed: "failed: kernel, I/O, worker, or no answer within the deadline"
        case .usage: "wrong usage or an impossible value"
        case .notPermitted: "not permitted, or a limit is reached"
        case .noSuchDevice: "no such device"
        case .busy: "in use"
        case .brokerNotReachable: "the broker cannot be reached"
        case .hostLacksSomething: "the host lacks something (module, kernel feature, …)"
        }
    }
}

/// Why a command failed: what was wrong, what to do next, and how a script recognises it.
struct CommandFailure: Error, Equatable {
    var status: ExitStatus
    /// For `--json`: the full name of the broker's error, or a name of our own without dots.
    var name: String
    var message: String
    var remedy: String
    /// Set when the same call can succeed later: after that many seconds; 0 when the time is not known.
    var passesAfter: Int64?
    /// For `--json`: the part of the request that succeeded.
    var done: JSON.Member?

    init(_ status: ExitStatus, _ name: String, _ message: String, remedy: String) {
        self.status = status
        self.name = name
        self.message = message
        self.remedy = remedy
    }

    /// The text for stderr: one line, whatever the broker or a file name put into it.
    var line: String { "ubd: " + "\(message); \(remedy)".printable }

    var json: JSON {
        .record([
            ("error", .string(name)), ("message", .string(message.readable)), ("remedy", .string(remedy.readable)),
            ("exit", .integer(Int64(status.rawValue))), (done?.name ?? "", done?.value),
        ])
    }
}

extension CommandFailure {
    /// An error that the broker replied, or that its rules give before it is asked.
    init(_ error: InterfaceError) {
        let status: ExitStatus =
            switch error {
            case .notPermitted, .quotaReached, .limitReached, .permissionDenied: .notPermitted
            case .invalidOption, .badFile: .usage
            case .noSuchDevice: .noSuchDevice
            case .busy, .idInUse: .busy
            case .kernelUnsupported: .hostLacksSomething
            default: .failed
            }
        self.init(status, error.name, error.message, remedy: error.remedy)
        switch error {
        case .limitReached: passesAfter = 0
        case .quotaReached(_, _, _, _, let again): passesAfter = again
        default: break
        }
        if case .invalidOption(_, _, let option, _) = error, let flag = Self.flags[option] ?? Self.sameName(option) {
            // The user typed a flag; the interface has another name for it.
            for text in [\CommandFailure.message, \CommandFailure.remedy] {
                self[keyPath: text] = Self.replacing(option, by: flag, in: self[keyPath: text])
            }
        }
    }

    private static let flags = [
        "target": "--target", "id": "--number", "queues": "--queues", "depth": "--depth",
        "maxIOBytes": "--max-io-size", "fileName": "--file", "name": "--name", "cpus": "--cpus", "mode": "--mode",
        "recovery": "--recovery", "ioTimeout": "--io-timeout", "sizeBytes": "--size",
    ]

    private static func sameName(_ option: String) -> String? {
        TargetList.all.contains { $0.option(named: option) != nil } ? "--" + option : nil
    }

    /// Only at the beginning of the message: elsewhere the name may be an ordinary word.
    private static func replacing(_ name: String, by flag: String, in text: String) -> String {
        text.hasPrefix(name + " ") ? flag + text.dropFirst(name.count) : text
    }

    /// The remedy when a limit of the caller's own process was reached; nil for any other errno.
    static func limitRemedy(_ errno: Int32) -> String? {
        switch errno {
        case EMFILE: "allow more open files, as in 'ulimit -n 64'"
        case ENFILE: "let the administrator raise fs.file-max"
        case EAGAIN: "no process could be started: end one of yours, or allow more ('ulimit -u')"
        case ENOMEM: "there is no memory left: end a program, or allow more ('ulimit -v')"
        default: nil
        }
    }

    /// A system call of this process failed.
    init(_ error: SystemError, _ name: String = "SystemError", remedy: String) {
        self.init(.failed, name, error.description, remedy: remedy)
    }
}

extension String {
    /// The text with control characters and direction overrides, which steer a terminal, replaced by "?".
    var printable: String {
        var result = String.UnicodeScalarView()
        for scalar in readable.unicodeScalars {
            let turnsText = (0x202A...0x202E).contains(scalar.value) || (0x2066...0x2069).contains(scalar.value)
            result.append(scalar.isControl || turnsText ? "?" : scalar)
        }
        return String(result)
    }
}
