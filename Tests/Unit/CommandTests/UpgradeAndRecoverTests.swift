import BrokerInterface
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd resize")
struct ResizeTests {
    private func broker(_ answer: @escaping @Sendable (ResizeRequest) -> Reply, calls: Int = 1) -> FakeBroker {
        FakeBroker(connections: 1 + calls) { connection, call in
            switch try? BrokerCall(call) {
            case .list: connection.send(Reply(parameters: ListReply(devices: [FakeBroker.device(id: 3)]).json))
            case .resize(let request): connection.send(answer(request))
            default: break
            }
        }
    }

    @Test("asks for that generation of a device and that size, and says what it had and has")
    func one() throws {
        let broker = broker { _ in
            Reply(parameters: ResizeReply(previousBytes: 1 << 20, device: FakeBroker.device(id: 3)).json)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["resize", "-n", "3", "--size", "1G"], broker.environment(console)) == 0)
        #expect(broker.finish())
        #expect(console.output == ["/dev/ubdb3: 1073741824 bytes (1 GiB) instead of 1048576"])
        #expect(
            try BrokerCall(#require(broker.received.last))
                == .resize(ResizeRequest(id: 3, generation: 43, sizeBytes: 1 << 30)))
    }

    @Test("says when nothing was to be done, and names the option that the broker refuses")
    func others() throws {
        let same = broker { _ in
            Reply(parameters: ResizeReply(previousBytes: 1 << 30, device: FakeBroker.device(id: 3)).json)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["resize", "-n", "3"], same.environment(console)) == 0)
        #expect(console.output == ["/dev/ubdb3: has 1073741824 bytes already"])
        let refusing = broker { _ in
            InterfaceError.invalidOption(
                message: "sizeBytes can not be 7", remedy: "x", option: "sizeBytes", value: "7"
            )
            .reply
        }
        #expect(CommandLineTool.run(["resize", "-n", "3", "--size", "7"], refusing.environment(console)) == 2)
        #expect(console.errors == ["ubd: --size can not be 7; x"])
    }

    @Test("with --shrink first looks whether the device is free, and asks for nothing when it is not")
    func shrink() throws {
        let broker = FakeBroker { connection, _ in
            // No user could flush this node.
            let device = FakeBroker.device(id: 3, node: "/dev/null")
            connection.send(Reply(parameters: ListReply(devices: [device]).json))
        }
        let console = Recorder()
        let line = ["resize", "-n", "3", "--size", "1M", "--shrink"]
        #expect(CommandLineTool.run(line, broker.environment(console)) == ExitStatus.failed.rawValue)
        #expect(console.errors.joined().contains("so it does not become smaller"))
    }
}

@Suite("ubd upgrade")
struct UpgradeTests {
    /// Serves the list, then every Upgrade with `answer`.
    private func broker(
        _ devices: [Device], upgrades: Int, _ answer: @escaping @Sendable (UpgradeRequest) -> Reply
    ) -> FakeBroker {
        FakeBroker(connections: 1 + upgrades) { connection, call in
            switch try? BrokerCall(call) {
            case .list: connection.send(Reply(parameters: ListReply(devices: devices).json))
            case .upgrade(let request): connection.send(answer(request))
            default: break
            }
        }
    }

    private static func reply(_ id: UInt32, upgraded: Bool) -> Reply {
        var device = FakeBroker.device(id: id)
        device.workerVersion = "0.2.0"
        return Reply(parameters: UpgradeReply(upgraded: upgraded, device: device).json)
    }

    @Test("asks for that generation of a device, and says what its worker is now")
    func one() throws {
        let broker = broker([FakeBroker.device(id: 3)], upgrades: 1) { Self.reply($0.id, upgraded: true) }
        let console = Recorder()
        #expect(CommandLineTool.run(["upgrade", "-n", "3"], broker.environment(console)) == 0)
        #expect(broker.finish())
        #expect(console.output == ["/dev/ubdb3: upgraded to 0.2.0"])
        #expect(try BrokerCall(#require(broker.received.last)) == .upgrade(UpgradeRequest(id: 3, generation: 43)))
    }

    @Test("says so when a worker runs the installed program already")
    func current() throws {
        let broker = broker([FakeBroker.device()], upgrades: 1) { Self.reply($0.id, upgraded: false) }
        let console = Recorder()
        #expect(CommandLineTool.run(["upgrade", "-n", "0"], broker.environment(console)) == 0)
        #expect(console.output == ["/dev/ubdb0: runs the installed program 0.2.0 already"])
    }

    @Test("goes on with the other devices when one fails, and fails in the end")
    func all() throws {
        let broker = broker([FakeBroker.device(id: 0), FakeBroker.device(id: 1)], upgrades: 2) { request in
            request.id == 0
                ? InterfaceError.failed(message: "not fit", remedy: "mend it", step: "rehearsal", errno: nil).reply
                : Self.reply(1, upgraded: true)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["upgrade", "--all"], broker.environment(console)) == 1)
        #expect(console.output == ["/dev/ubdb1: upgraded to 0.2.0"])
        #expect(console.errors == ["ubd: not fit; mend it"])
    }

    @Test("prints JSON when asked")
    func json() throws {
        let broker = broker([FakeBroker.device()], upgrades: 1) { Self.reply($0.id, upgraded: true) }
        let console = Recorder()
        #expect(CommandLineTool.run(["upgrade", "-n", "0", "--json"], broker.environment(console)) == 0)
        let json = try JSON(parsing: Array(console.output.joined().utf8))
        guard case .array(let replies) = json else {
            Issue.record("no array: \(console.output)")
            return
        }
        #expect(try replies.map { try UpgradeReply(parameters: $0).upgraded } == [true])
    }
}

@Suite("ubd recover")
struct RecoverTests {
    /// Serves the list, then takes the files of a Recover; `inodes` of what came.
    private func run(
        _ arguments: [String], device: Device, console: Recorder = Recorder(), uid: UInt32 = 1000
    ) throws -> (status: Int32, inodes: [UInt], calls: [Call]) {
        let inodes = Mutex<[UInt]>([])
        let broker = FakeBroker(connections: 2) { connection, call in
            switch try? BrokerCall(call) {
            case .list: connection.send(Reply(parameters: ListReply(devices: [device]).json))
            case .recover:
                for fd in connection.askForFiles(2) {
                    var status = stat()
                    fstat(fd, &status)
                    inodes.withLock { $0.append(UInt(status.st_ino)) }
                    close(fd)
                }
                connection.send(AddReply.added(FakeBroker.device(), notices: []).reply)
            default: break
            }
        }
        var environment = broker.environment(console)
        environment.host = FakeMachine(uid: uid)
        let status = CommandLineTool.run(["recover"] + arguments, environment)
        return (status, inodes.withLock { $0 }, broker.received)
    }

    private func inode(_ path: String) -> UInt {
        var status = stat()
        stat(path, &status)
        return UInt(status.st_ino)
    }

    @Test("brings the file that is named, opened twice")
    func named() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let console = Recorder()
        let device = FakeBroker.device(state: .recovering, file: "other.img")
        let (status, inodes, calls) = try run(["-n", "0", "-f", file], device: device, console: console)
        #expect(status == 0 && console.output == ["/dev/ubdb0"])
        #expect(inodes == [inode(file), inode(file)])
        #expect(try BrokerCall(#require(calls.last)) == .recover(RecoverRequest(id: 0, generation: 40)))
    }

    @Test("without a name takes the one on record")
    func onRecord() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let (status, inodes, _) = try run(["-n", "0"], device: FakeBroker.device(state: .recovering, file: file))
        #expect(status == 0 && inodes == [inode(file), inode(file)])
    }

    @Test("opens no name that somebody else chose: root is told to name the file of another user's device")
    func strangersName() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let device = FakeBroker.device(state: .recovering, file: file)
        let console = Recorder()
        let (status, inodes, _) = try run(["-n", "0"], device: device, console: console, uid: 0)
        #expect(status == 2 && inodes.isEmpty)
        #expect(console.errors.first?.contains("device 0 is another user's (uid 1000)") == true, "\(console.errors)")
        let named = try run(["-n", "0", "-f", file], device: device, uid: 0)
        #expect(named.status == 0 && named.inodes == [inode(file), inode(file)])
    }

    @Test("says what is missing when there is none on record, or no such file")
    func missing() throws {
        let unknown = "name its file with --file: '/nowhere/1.img' is what it was called when the device was added"
        for (name, problem) in [
            (nil, "no file name on record; name its file with --file"),
            ("/nowhere/1.img", "/nowhere/1.img: No such file or directory; \(unknown)"),
        ] {
            let console = Recorder()
            let device = FakeBroker.device(state: .recovering, file: name)
            let (status, _, _) = try run(["-n", "0"], device: device, console: console)
            #expect(status == 2)
            #expect(console.errors.first?.contains(problem) == true, "\(console.errors)")
        }
    }

    /// Runs the command for a device of target nbd; how many connections its server got.
    private func reconnect(
        owner: UInt32, keeper: Int32?, _ more: (String) -> [String] = { _ in [] }
    ) throws -> (status: Int32, errors: [String], dialled: Int32) {
        let folder = TemporaryFolder()
        let server = try listen(at: folder.path + "/s", backlog: 8)
        var device = FakeBroker.device(target: "nbd", state: .recovering, file: "nbd+unix:///?socket=\(folder.path)/s")
        (device.owner, device.keeper) = (owner, keeper)
        let listed = device
        let broker = FakeBroker { connection, _ in
            connection.send(Reply(parameters: ListReply(devices: [listed]).json))
        }
        let console = Recorder()
        var environment = broker.environment(console, host: FakeMachine(uid: 1000))
        environment.dialSeconds = 5
        let uri = "nbd+unix:///?socket=\(folder.path)/s"
        let status = CommandLineTool.run(["recover", "-n", "0"] + more(uri), environment)
        var waiting = pollfd(fd: server.raw, events: Int16(POLLIN), revents: 0)
        return (status, console.errors, poll(&waiting, 1, 0))
    }

    @Test("dials no server beside the device's keeper, which alone can let the server finish what it had received")
    func keeper() throws {
        let (status, errors, dialled) = try reconnect(owner: 1000, keeper: 4712)
        #expect(status == 5 && dialled == 0)
        let message = "device 0 has a keeper (process 4712), which makes its connections"
        let remedy = "wait ('journalctl -t ubd-nbd' says what it does), or end it ('kill 4712') and try again"
        #expect(errors == ["ubd: \(message); \(remedy)"])
    }

    @Test("dials no server for another user's device, also when it is named")
    func strangersConnections() throws {
        let (status, errors, dialled) = try reconnect(owner: 1001, keeper: nil) { ["--uri", $0] }
        #expect(status == 3 && dialled == 0)
        let words = "its owner's (uid 1001); let its owner run 'ubd recover -n 0'"
        #expect(errors.first?.contains(words) == true, "\(errors)")
    }
}
