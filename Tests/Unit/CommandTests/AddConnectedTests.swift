import BrokerInterface
import Foundation
import Forked
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

/// `ubd add -t nbd` with the real ubd-nbd and a real server; the broker alone is played.
@Suite("ubd add -t nbd")
struct AddConnectedTests {
    private static func device() -> Device {
        var device = FakeBroker.device(target: "nbd", file: "nbd")
        device.keeper = 1
        return device
    }

    /// The world without a broker.
    private static func nobody(_ console: Recorder) -> CommandEnvironment {
        CommandEnvironment(
            console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: Program.path)
    }

    /// A broker that takes so many sockets, and tells the keeper that comes then that the device is no more.
    private static func broker(_ count: Int, _ taken: @escaping @Sendable ([Int32]) -> Void = { _ in }) -> FakeBroker {
        FakeBroker(connections: 2) { connection, call in
            guard call.methodName != "Monitor" else {
                let change = DeviceChange { $0.generation = 40 }
                return connection.send(MonitorReply(change: change).reply)
            }
            let sockets = connection.askForFiles(count)
            taken(sockets)
            for socket in sockets { close(socket) }
            connection.send(AddReply.added(device(), notices: []).reply)
        }
    }

    @Test("dials as the user, hands the connected sockets over with what was agreed, and leaves a keeper behind")
    func adds() throws {
        let sockets = Mutex<[(type: Int32, blocks: Bool)]>([])
        let broker = Self.broker(2) { files in
            for file in files {
                let type = (try? option(file, SO_TYPE)) ?? -1
                sockets.withLock { $0.append((type, fcntl(file, F_GETFL) & O_NONBLOCK == 0)) }
            }
        }
        let console = Recorder()
        var environment = broker.environment(console)
        environment.processors = 2
        let status = CommandLineTool.run(
            ["add", "-t", "nbd", "-q", "4", "--reconnect", "5s", "--", "nbdkit", "memory", "10M"], environment)
        #expect(status == 0, "\(console.errors)")
        #expect(broker.finish())
        #expect(console.output == ["/dev/ubdb0"])
        #expect(console.errors.count == 1 && console.errors[0].contains("this host has 2 CPUs"), "\(console.errors)")
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        #expect(request.target == "nbd" && request.queues == 2 && request.readOnly == nil)
        #expect(request.fileName?.hasPrefix("nbd+unix:///?socket=/") == true)
        let options = Dictionary(uniqueKeysWithValues: request.options.map { ($0.name, $0.value) })
        #expect(options["size"] == String(10 << 20) && options["block-size"] == "512" && options["connections"] == "2")
        #expect(
            options["reconnect"] == "5000" && options["cipher"] == "" && options["maximum-block"] == String(32 << 20))
        let taken = sockets.withLock { $0 }
        #expect(taken.count == 2 && taken.allSatisfy { $0.type == Int32(SOCK_STREAM.rawValue) && $0.blocks })
        let monitor = try MonitorRequest(parameters: #require(broker.received.last).parameters)
        #expect(monitor == MonitorRequest(ids: [0], keep: true))
    }

    @Test("makes a read-only device of a read-only export, with whole blocks, and says so")
    func readOnly() throws {
        let broker = Self.broker(1)
        let console = Recorder()
        let status = CommandLineTool.run(
            ["add", "-t", "nbd", "--", "nbdkit", "-r", "memory", "1000"], broker.environment(console))
        #expect(status == 0, "\(console.errors)")
        #expect(broker.finish())
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        #expect(request.readOnly == true)
        #expect(request.options.contains(OptionValue("size", "512")))
        #expect(
            console.errors.contains { $0.contains("read-only") }
                && console.errors.contains { $0.contains("1000 bytes") })
    }

    /// Whether the process ends. Whoever has to wait for it may be slow to do so: a zombie has ended.
    private func ends(_ pid: pid_t) async -> Bool {
        for _ in 0..<1200 {
            guard let status = try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8) else { return true }
            if status.contains("State:\tZ") { return true }
            try? await Task.sleep(for: .milliseconds(50))
        }
        return false
    }

    @Test("takes the server and its program away again when the broker refuses")
    func refused() async throws {
        let broker = FakeBroker { connection, _ in
            let error = InterfaceError.notPermitted(message: "no", remedy: "ask", rule: nil)
            connection.send(Reply(error: error.name, parameters: error.parameters))
        }
        let folder = TemporaryFolder()
        let mark = folder.path + "/pid"
        let console = Recorder()
        let status = CommandLineTool.run(
            ["add", "-t", "nbd", "--json", "--", "sh", "-c", "echo $$ >\(mark); exec nbdkit memory 1M"],
            broker.environment(console))
        #expect(status == 3, "\(console.errors)")
        #expect(broker.finish())
        let pid = try #require(pid_t(String(contentsOfFile: mark, encoding: .utf8).trimmingCharacters(in: .newlines)))
        #expect(await ends(pid))
    }

    @Test(
        "tells what is wrong and what to do, with its exit status",
        arguments: [
            (
                ["--uri", "nbd+unix:///?socket=/nowhere"], 1,
                "no server at /nowhere: No such file or directory; start the server"
            ),
            (["--uri", "http://host/"], 2, "has the scheme 'http', which ubd does not know; use nbd"),
            ([], 2, "target nbd needs a server; give --uri"),
            (["--uri", "nbd://a", "--", "nbdkit"], 2, "both --uri and a command name a server"),
            (["--uri", "nbd://a", "-f", "x"], 2, "target nbd takes no file, so 'x' would not be used"),
            (["--uri", "nbd://a", "--shared"], 2, "there is nothing to share"),
            (["--uri", "nbd://a", "-q", "3", "--connections", "2"], 2, "--connections can not be 2 with 3 queues"),
            (["--uri", "nbd://a", "--tls-username", "x"], 2, "means nothing without TLS"),
            (["--uri", "nbd://a", "--restart-command"], 2, "is for a server that ubd starts"),
            (["--", "/no/such/program"], 1, "/no/such/program can not be started"),
            (["--", "qemu-nbd", "x"], 2, "add -t, and -e 0"),
            (
                [
                    "--", "nbdkit", "memory", "1G", "--filter=blocksize-policy", "blocksize-minimum=64k",
                    "blocksize-preferred=64k",
                ], 1,
                "no blocks of less than 65536 bytes"
            ),
            (["--", "nbdkit", "memory", "100"], 1, "has 100 bytes, less than a block of 512"),
        ] as [([String], Int32, String)])
    func problems(arguments: [String], status: Int32, message: String) {
        let console = Recorder()
        var environment = Self.nobody(console)
        environment.processors = 4
        #expect(CommandLineTool.run(["add", "-t", "nbd"] + arguments, environment) == status)
        #expect(console.errors.last?.contains(message) == true, "\(console.errors)")
    }

    @Test("of another target takes nothing that is for servers")
    func otherTargets() {
        for arguments in [["--tls-username", "x"], ["--restart-command"], ["--", "nbdkit"]] {
            let console = Recorder()
            #expect(CommandLineTool.run(["add", "-t", "null"] + arguments, Self.nobody(console)) == 2)
            #expect(console.errors.last?.contains("has no server, so") == true, "\(console.errors)")
        }
    }

    @Test("reads what is behind -- as the server's, whatever it is")
    func serversOptions() {
        let console = Recorder()
        let environment = Self.nobody(console)
        #expect(
            CommandLineTool.run(["add", "-t", "nbd", "--", "/no/such", "--json", "-n", "1", "-n", "2"], environment)
                == 1)
        #expect(console.output == [] && console.errors.last?.contains("/no/such can not be started") == true)
    }

    /// In place of ubd-nbd: a shell, which may become it.
    private static func dialer(_ folder: TemporaryFolder, _ script: String) throws -> String {
        let path = folder.path + "/dialer"
        try "#!/bin/sh\n\(script)\n".write(toFile: path, atomically: true, encoding: .utf8)
        chmod(path, 0o755)
        return path
    }

    @Test("says how ubd-nbd ended that was killed before there was a device, and removes its folder")
    func killedEarly() throws {
        let folder = TemporaryFolder()
        let console = Recorder()
        var environment = Self.nobody(console)
        environment.dialer = try Self.dialer(
            folder,
            "mkdir /tmp/ubd-nbd.$$.abcdef; touch /tmp/ubd-nbd.$$.abcdef/socket; echo $$ >\(folder.path)/pid; kill -9 $$"
        )
        #expect(CommandLineTool.run(["add", "-t", "nbd", "--", "nbdkit", "memory", "1M"], environment) == 1)
        #expect(
            console.errors.last?.contains("ubd-nbd was killed by SIGKILL before there was a device; see whether")
                == true,
            "\(console.errors)")
        let pid = try String(contentsOfFile: folder.path + "/pid", encoding: .utf8).trimmingCharacters(in: .newlines)
        #expect(access("/tmp/ubd-nbd.\(pid).abcdef", F_OK) != 0, "its folder is still there")
        // One that ends by itself has a reason that it does not tell.
        environment.dialer = try Self.dialer(folder, "exit 3")
        #expect(CommandLineTool.run(["add", "-t", "nbd", "--", "nbdkit", "memory", "1M"], environment) == 1)
        #expect(console.errors.last?.contains("ubd-nbd ended without saying why") == true, "\(console.errors)")
    }

    @Test("says that nobody keeps the device when ubd-nbd was killed while the broker made it")
    func killedLate() throws {
        let folder = TemporaryFolder()
        let mark = folder.path + "/pid"
        let broker = Self.broker(1) { _ in
            if let text = try? String(contentsOfFile: mark, encoding: .utf8),
                let pid = pid_t(text.trimmingCharacters(in: .newlines))
            {
                kill(pid, SIGKILL)
            }
        }
        let server = folder.path + "/server"
        let nbdkit = try ChildProcess(["nbdkit", "-f", "-U", server, "memory", "1M"])
        defer { nbdkit.end() }
        for _ in 0..<200 where access(server, F_OK) != 0 { usleep(50_000) }
        let console = Recorder()
        var environment = broker.environment(console)
        environment.dialer = try Self.dialer(folder, "echo $$ >\(mark); exec \(Installation.dialer) \"$@\"")
        let status = CommandLineTool.run(
            ["add", "-t", "nbd", "--uri", "nbd+unix:///?socket=\(server)"], environment)
        #expect(status == 0 && console.output == ["/dev/ubdb0"], "\(console.errors)")
        #expect(
            console.errors.contains {
                $0.contains("ubd-nbd was killed by SIGKILL, so nobody makes its connections again")
                    && $0.contains("'ubd recover -n 0'")
            }, "\(console.errors)")
    }

    @Test("is followed by ubd recover, which dials the URI on record and brings what the server says")
    func recovers() throws {
        let folder = TemporaryFolder()
        let path = folder.path + "/s"
        let server = try ChildProcess(["nbdkit", "-f", "-U", path, "memory", "10M"])
        defer { server.end() }
        for _ in 0..<200 where access(path, F_OK) != 0 { usleep(50_000) }
        let taken = Mutex(0)
        let broker = FakeBroker(connections: 3) { connection, call in
            var device = Self.device()
            (device.state, device.keeper) = (.recovering, nil)
            device.file = "nbd+unix:///?socket=\(path)"
            device.queues = 2
            device.owner = getuid()
            switch call.methodName {
            case "List": connection.send(Reply(parameters: ListReply(devices: [device]).json))
            case "Recover":
                let sockets = connection.askForFiles(2)
                taken.withLock { $0 = sockets.count }
                for socket in sockets { close(socket) }
                connection.send(AddReply.added(Self.device(), notices: []).reply)
            default:
                let change = DeviceChange { $0.generation = 40 }
                connection.send(MonitorReply(change: change).reply)
            }
        }
        let console = Recorder()
        var host = FakeMachine.healthy
        host.uid = getuid()
        #expect(
            CommandLineTool.run(["recover", "-n", "0"], broker.environment(console, host: host)) == 0,
            "\(console.errors)")
        #expect(broker.finish())
        #expect(taken.withLock { $0 } == 2)
        #expect(console.output == ["/dev/ubdb0"])
        let request = try RecoverRequest(parameters: broker.received[1].parameters)
        #expect(request.generation == 40 && request.options.contains(OptionValue("size", String(10 << 20))))
    }
}
