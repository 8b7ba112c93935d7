import BrokerInterface
import Foundation
import Glibc
import SystemCalls
import Testing
import Varlink

@testable import ubd

/// State that a program inherits and must not depend on. A shell makes each case and then executes `ubd`.
@Suite("What the program ubd inherits")
struct InheritedTests {
    private static let commands: [(name: String, arguments: [String])] = [
        ("add", ["add", "-t", "loop", "-f", "IMAGE"]), ("add --json", ["add", "--json", "-t", "loop", "-f", "IMAGE"]),
        ("add, refused", ["add", "--json", "-t", "loop", "-n", "9", "-f", "IMAGE"]),
        ("recover", ["recover", "-n", "0", "-f", "IMAGE"]), ("list", ["list"]), ("list --json", ["list", "--json"]),
        ("del", ["del", "-n", "0"]), ("del --json", ["del", "--json", "-a"]), ("upgrade", ["upgrade", "-n", "0"]),
        ("resize", ["resize", "-n", "0"]), ("partitions -f", ["partitions", "-f", "IMAGE"]),
        ("stats", ["stats"]), ("partitions", ["partitions", "-n", "0"]), ("info", ["info"]), ("features", ["features"]),
        ("doctor", ["doctor"]), ("help", ["help", "add"]),
        ("--help", ["--help"]), ("--version", ["--version"]), ("usage", ["add", "--json"]),
        ("completions", ["--generate-completion-script", "bash"]),
    ]

    /// Answers every command; `ubd add -n 9` is refused.
    private static func broker(_ image: String) -> FakeBroker {
        FakeBroker(connections: 1000) { connection, call in
            let device = FakeBroker.device(node: image, file: image)
            switch call.methodName {
            case "Add" where call.parameters["id"] == .integer(9):
                connection.send(InterfaceError.idInUse(message: "in use", remedy: "another", id: 9).reply)
            case "Add", "Recover":
                for fd in connection.askForFiles(2) { close(fd) }
                let notices = [Notice(code: "queues", message: "fewer queues")]
                connection.send(AddReply.added(device, notices: notices).reply)
            case "List": connection.send(Reply(parameters: ListReply(devices: [device]).json))
            case "Stats": connection.send(Reply(parameters: StatsReply(latencyBounds: [], devices: []).json))
            case "Upgrade":
                let reply = UpgradeReply(upgraded: true, device: device)
                connection.send(Reply(parameters: reply.json))
            case "Resize":
                let reply = ResizeReply(previousBytes: 512, device: device)
                connection.send(Reply(parameters: reply.json))
            case "Info": connection.send(Reply(parameters: FakeBroker.info.json))
            default: connection.send(Reply())
            }
        }
    }

    /// Without the memory that is available, which differs from one moment to the next.
    private static func steady(_ output: String) -> String {
        output.replacing(/[0-9.]+ [KMGT]iB/, with: "some memory")
    }

    @Test(
        "no descriptor that it was started without becomes a file of value: every command, every combination of 0 to 2",
        arguments: [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
    func closedDescriptors(closed: [Int]) throws {
        let folder = TemporaryFolder()
        let image = folder.path + "/disk.img"
        let content = Data((0..<1 << 16).map { UInt8(truncatingIfNeeded: $0 &* 7) })
        try content.write(to: URL(fileURLWithPath: image))
        let broker = Self.broker(image)
        let redirections = closed.map { $0 == 0 ? "<&-" : "\($0)>&-" }.joined(separator: " ")
        for (name, arguments) in Self.commands {
            let arguments = arguments.map { $0 == "IMAGE" ? image : $0 }
            let plain = try Program.run(arguments, socket: broker.socketPath)
            let result = try Program.run(
                arguments, socket: broker.socketPath, shell: "exec \"$0\" \"$@\" \(redirections)")
            #expect(result.status == plain.status, "\(name)")
            #expect(Self.steady(result.output) == (closed.contains(1) ? "" : Self.steady(plain.output)), "\(name)")
            #expect(result.errors == (closed.contains(2) ? "" : plain.errors), "\(name)")
            #expect(try Data(contentsOf: URL(fileURLWithPath: image)) == content, "\(name) wrote into the image")
        }
    }

    @Test("signals that its starter blocks or ignores change nothing, and no file may be as long as it wants")
    func signalsAndLimits() throws {
        let folder = TemporaryFolder()
        let image = folder.file("disk.img", bytes: 1 << 20)
        let broker = Self.broker(image)
        // With SIGCHLD ignored the kernel throws the helper's exit status away: del would take any answer for success.
        let signals = "trap '' CHLD PIPE XFSZ; exec \"$0\" \"$@\""
        let partitions = try Program.run(["partitions", "-n", "0"], socket: broker.socketPath, shell: signals)
        #expect(partitions.status == 1)
        #expect(partitions.errors.contains("has no partition table that sfdisk knows"))
        let list = try Program.run(
            ["list"], socket: broker.socketPath, shell: "ulimit -f 0; exec \"$0\" \"$@\" >\(folder.path)/list")
        #expect(list.status == 1)
        #expect(list.errors.contains("could not be written: File too large"))
    }

    @Test("a process that may have few open files says so, and blames neither the broker nor the device")
    func fewFiles() throws {
        let folder = TemporaryFolder()
        let image = folder.file("disk.img", bytes: 1 << 20)
        let broker = Self.broker(image)
        var said: Set<String> = []
        for arguments in [
            ["add", "-t", "loop", "-f", image], ["list"], ["del", "-n", "0"], ["partitions", "-n", "0"],
        ] {
            for limit in 4...7 {
                let result = try Program.run(
                    arguments, socket: broker.socketPath, shell: "ulimit -n \(limit); exec \"$0\" \"$@\"")
                if result.errors.hasPrefix("ubd: note: the sector size that \(image) is made for is not known") {
                    // Only the child that reads the content had no room.
                    #expect(result.status == 0)
                    said.insert("note")
                } else if result.errors.contains("Too many open files") {
                    #expect(result.status == 1, "\(arguments) \(limit)")
                    #expect(result.errors.contains("; allow more"), "\(arguments) \(limit): \(result.errors)")
                    said.insert(result.errors.components(separatedBy: ": Too many")[0])
                } else {
                    // There was enough room, or too little even for the libraries. (The node is no disk of this host.)
                    let hasEnded =
                        result.status == 0 || result.status == 127 || result.errors.contains("no partition table")
                        || arguments[0] == "del" && result.errors.contains("is not in the /dev of this container")
                    #expect(hasEnded, "\(arguments) \(limit): \(result.errors)")
                }
            }
        }
        #expect(said.contains("note") && said.count >= 4, "\(said)")
    }

    @Test("waits for room in a pipe that somebody made non-blocking, as in any other")
    func nonBlockingOutput() throws {
        let output = Pipe()
        let end = output.fileHandleForWriting.fileDescriptor
        #expect(fcntl(end, F_SETFL, O_NONBLOCK) == 0)
        #expect(fcntl(end, F_SETPIPE_SZ, 4096) == 4096)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: Program.path)
        process.arguments = ["--generate-completion-script", "bash"]
        process.standardOutput = output
        try process.run()
        try output.fileHandleForWriting.close()
        // By then the pipe would be full, if the program had not ended.
        usleep(300_000)
        let text = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        #expect(text.count > 8192 && text.last == UInt8(ascii: "\n"))
    }

    @Test("a file that it is to print into is not taken as the file of a device")
    func outputIntoTheFile() throws {
        let folder = TemporaryFolder()
        let image = folder.file("disk.img", bytes: 4096)
        for redirection in [">>", "2>>"] {
            let result = try Program.run(
                ["add", "-t", "loop", "-f", image], socket: "/nowhere",
                shell: "exec \"$0\" \"$@\" \(redirection)'\(image)'")
            #expect(result.status == 2)
            let text = try String(contentsOfFile: image, encoding: .isoLatin1)
            let said = redirection == ">>" ? result.errors : String(text.dropFirst(4096))
            #expect(said.contains("\(image) is where this command prints"))
        }
    }

    @Test("a working directory that is gone is reported, and not taken for a file that does not exist yet")
    func workingFolderGone() throws {
        let folder = TemporaryFolder()
        let script = "mkdir '\(folder.path)/w'; cd '\(folder.path)/w'; rmdir '\(folder.path)/w'; exec \"$0\" \"$@\""
        let result = try Program.run(["add", "-t", "loop", "-f", "disk.img"], socket: "/nowhere", shell: script)
        #expect(result.status == 2)
        #expect(result.errors.contains("disk.img: the working directory is gone; change into one that exists"))
        let version = try Program.run(["--version"], socket: "/nowhere", shell: script)
        #expect(version.status == 0)
    }
}
