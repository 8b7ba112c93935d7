import BrokerInterface
import Foundation
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

/// The program as a process: behaviour that unit tests of its parts cannot show.
@Suite("The program ubd")
struct ProgramTests {
    @Test("prints the device on stdout, notes on stderr, and ends with 0")
    func add() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            let notice = Notice(code: "queues", message: "fewer queues")
            connection.send(AddReply.added(FakeBroker.device(node: "/dev/null"), notices: [notice]).reply)
        }
        let result = try Program.run(["add", "-t", "loop", "-f", file], socket: broker.socketPath)
        #expect(result.status == 0)
        #expect(result.output == "/dev/ubdb0\n")
        #expect(result.errors == "ubd: note: fewer queues\n")
    }

    @Test("takes the socket from UBD_SOCKET and ends with 6 when nobody is there")
    func noBroker() throws {
        let result = try Program.run(["list"], socket: "/nowhere/socket")
        #expect(result.status == 6)
        #expect(result.errors.hasPrefix("ubd: no broker at /nowhere/socket: No such file or directory; start it"))
        #expect(result.errors.filter { $0 == "\n" }.count == 1)
        let long = try Program.run(["list"], socket: "/" + String(repeating: "x", count: 200))
        #expect(long.status == 2)
    }

    @Test("ends with 2 for a wrong command line, and with JSON on stdout when that was asked for")
    func usage() throws {
        let result = try Program.run(["add", "--json", "-t", "null", "-q", "0"], socket: "/nowhere")
        #expect(result.status == 2)
        let json = try JSON(parsing: result.output.trimmingCharacters(in: .newlines))
        #expect(json["error"] == "io.ubd.Broker.InvalidOption")
        #expect(json["message"] == "--queues can not be 0")
    }

    @Test("ends with 1 when the disk that takes its output is full")
    func full() throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: Program.path)
        process.arguments = ["--version"]
        process.standardOutput = FileHandle(forWritingAtPath: "/dev/full")
        let errors = Pipe()
        process.standardError = errors
        try process.run()
        let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 1)
        #expect(text.contains("No space left on device"))
    }

    @Test(
        "notices that its output goes nowhere: a full disk or a reader that is gone, in every command, with status 1 and one line",
        arguments: ["full", "pipe", "ignored"])
    func outputLost(_ how: String) throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let broker = FakeBroker(connections: 100) { connection, call in
            switch call.methodName {
            case "Add", "Recover":
                for fd in connection.askForFiles(2) { close(fd) }
                connection.send(AddReply.added(FakeBroker.device(), notices: []).reply)
            case "List": connection.send(Reply(parameters: ListReply(devices: [FakeBroker.device()]).json))
            case "Stats":
                connection.send(
                    Reply(
                        parameters: StatsReply(
                            latencyBounds: [], devices: [DeviceStats(id: 0, generation: 40, since: nil, total: nil)]
                        ).json))
            case "Upgrade":
                connection.send(Reply(parameters: UpgradeReply(upgraded: true, device: FakeBroker.device()).json))
            case "Monitor":
                let change = DeviceChange {
                    ($0.id, $0.generation, $0.state) = (0, 1, .live)
                    $0.since = 1
                }
                connection.send(MonitorReply(change: change).reply)
                _ = connection.waitForEnd()
            case "Info": connection.send(Reply(parameters: FakeBroker.info.json))
            default: connection.send(Reply())
            }
        }
        let commands = [
            ["add", "-t", "loop", "-f", file], ["add", "--json", "-t", "loop", "-f", file], ["list"],
            ["list", "--json"], ["recover", "-n", "0", "-f", file], ["upgrade", "-n", "0"],
            ["upgrade", "-a", "--json"],
            ["del", "-n", "0", "--force", "--json"], ["stats"], ["stats", "--json"], ["stats", "--watch"],
            ["stats", "--watch=0.1", "--json"], ["list", "--watch"], ["list", "--watch", "--json"], ["events"],
            ["events", "--json"], ["info"],
            ["info", "--json"], ["features"], ["features", "--json"],
            ["--help"], ["help", "add"], ["add", "--help"], ["--version"], ["--generate-completion-script", "zsh"],
        ]
        let place = folder.path
        let pipe = """
            rm -f '\(place)/pipe'; mkfifo '\(place)/pipe'; : <'\(place)/pipe' & exec >'\(place)/pipe'; wait $!
            "$0" "$@"; echo $? >'\(place)/status'
            """
        for arguments in commands {
            let script =
                switch how {
                case "full": "exec \"$0\" \"$@\" >/dev/full"
                // The reader has ended before the first byte is written.
                case "pipe": pipe
                default: "trap '' PIPE; \(pipe)"
                }
            let result = try Program.run(arguments, socket: broker.socketPath, shell: script)
            let status =
                how == "full"
                ? "\(result.status)"
                : try String(contentsOfFile: folder.path + "/status", encoding: .utf8)
                    .trimmingCharacters(in: .whitespacesAndNewlines)
            let why = how == "full" ? "No space left on device" : "Broken pipe"
            #expect(status == "1", "\(arguments)")
            // There is also a note that this host does not have the device.
            let lines = result.errors.split(separator: "\n").filter { !$0.hasPrefix("ubd: note: ") }
            #expect(lines.count == 1, "\(arguments): \(result.errors)")
            let lost = "ubd: the output could not be written: \(why); "
            #expect(lines.last?.hasPrefix(lost) == true, "\(arguments): \(result.errors)")
        }
    }

    @Test("a watch whose reader goes away while nothing is printed ends, too, and at once")
    func watchWithoutReader() throws {
        let folder = TemporaryFolder()
        let broker = FakeBroker(connections: 100) { connection, _ in
            connection.send(Reply(parameters: StatsReply(latencyBounds: [], devices: []).json))
        }
        let script = "{ \"$0\" \"$@\"; echo $? >'\(folder.path)/status'; } | sleep 0.5"
        let started = Date()
        let result = try Program.run(["stats", "--watch", "3600"], socket: broker.socketPath, shell: script)
        #expect(Date().timeIntervalSince(started) < 15)
        #expect(try String(contentsOfFile: folder.path + "/status", encoding: .utf8) == "1\n")
        #expect(result.errors.contains("could not be written: Broken pipe"))
    }

    @Test(
        "closes its connection when it is interrupted during an add, so that the broker undoes",
        arguments: [SIGINT, SIGTERM, SIGHUP])
    func interrupted(signal: Int32) throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let asked = DispatchSemaphore(value: 0)
        let ended = Mutex(false)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            asked.signal()
            let end = connection.waitForEnd()
            ended.withLock { $0 = end }
        }
        let (process, output, errors) = try Program.start(["add", "-t", "loop", "-f", file], socket: broker.socketPath)
        #expect(asked.wait(timeout: .now() + 20) == .success)
        kill(process.processIdentifier, signal)
        process.waitUntilExit()
        #expect(process.terminationReason == .uncaughtSignal && process.terminationStatus == signal)
        #expect(broker.finish())
        #expect(ended.withLock { $0 })
        #expect(output.fileHandleForReading.readDataToEndOfFile().isEmpty)
        #expect(errors.fileHandleForReading.readDataToEndOfFile().isEmpty)
    }

    @Test(
        "ends when it is interrupted while the broker's backlog is full, and not only when there is room",
        arguments: [["add", "-t", "null", "--size", "1M"], ["resize", "-n", "0", "--size", "1M"]])
    func interruptedBeforeTheBroker(_ line: [String]) throws {
        let folder = TemporaryFolder()
        let path = folder.path + "/socket"
        let listener = try SystemCalls.listen(at: path, backlog: 0)
        var waiting: [FileDescriptorBox] = []
        while let client = FileDescriptorBox(connectedTo: path) { waiting.append(client) }
        #expect(!waiting.isEmpty && errno == EAGAIN)
        let (process, output, _) = try Program.start(line, socket: path)
        // It has begun to wait by then; where it has not, the signal finds it earlier, which ends it, too.
        usleep(300_000)
        let began = Date()
        kill(process.processIdentifier, SIGINT)
        process.waitUntilExit()
        #expect(Date().timeIntervalSince(began) < 5)
        #expect(process.terminationReason == .uncaughtSignal && process.terminationStatus == SIGINT)
        #expect(output.fileHandleForReading.readDataToEndOfFile().isEmpty)
        withExtendedLifetime(waiting) {}
        close(listener.release())
    }

    @Test(
        "tells of a device that is there, also when a signal ends it at that moment",
        arguments: [SIGINT, SIGTERM, SIGHUP])
    func interruptedLate(signal: Int32) throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let pid = Mutex<pid_t?>(nil)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            while pid.withLock({ $0 }) == nil { usleep(1000) }
            connection.send(AddReply.added(FakeBroker.device(node: "/dev/null"), notices: []).reply)
            if let pid = pid.withLock({ $0 }) { kill(pid, signal) }
        }
        let (process, output, _) = try Program.start(["add", "-t", "loop", "-f", file], socket: broker.socketPath)
        pid.withLock { $0 = process.processIdentifier }
        process.waitUntilExit()
        #expect(broker.finish())
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(text == "/dev/ubdb0\n")
    }
}

/// A connection that a full backlog keeps waiting; closed with its last reference.
private final class FileDescriptorBox {
    private let raw: Int32

    /// nil when there is no room, with EAGAIN in errno.
    init?(connectedTo path: String) {
        raw = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard var address = unixAddress(path) else { return nil }
        let result = withUnsafePointer(to: &address) {
            connect(raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        if result != 0 { return nil }
    }

    deinit { close(raw) }
}
