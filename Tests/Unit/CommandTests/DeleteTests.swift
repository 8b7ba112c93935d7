import BrokerInterface
import CShims
import Foundation
import Glibc
import Synchronization
import Testing
import Varlink

@testable import SystemCalls

@testable import ubd

@Suite("ubd del")
struct DeleteTests {
    /// Serves the list, then every Delete with `answer`.
    private func broker(
        _ devices: [Device], deletes: Int, _ answer: @escaping @Sendable (DeleteRequest) -> Reply = { _ in Reply() }
    ) -> FakeBroker {
        FakeBroker(connections: 1 + deletes) { connection, call in
            switch try? BrokerCall(call) {
            case .list: connection.send(Reply(parameters: ListReply(devices: devices).json))
            case .delete(let request): connection.send(answer(request))
            default: break
            }
        }
    }

    private func deletes(_ broker: FakeBroker) throws -> [DeleteRequest] {
        try broker.received.compactMap { call in
            if case .delete(let request) = try BrokerCall(call) { request } else { nil }
        }
    }

    @Test("flushes the node in a child process, then deletes that generation and no other")
    func deletes() throws {
        let folder = TemporaryFolder()
        let node = folder.file("node", bytes: 4096)
        let broker = broker([FakeBroker.device(id: 3, node: node)], deletes: 1)
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == 0)
        #expect(broker.finish())
        #expect(console.output == [] && console.errors == [])
        #expect(try deletes(broker) == [DeleteRequest(id: 3, generation: 43)])
        #expect(try BrokerCall(broker.received[0]) == .list(ListRequest(id: 3)))
    }

    @Test(
        "of another generation is not deleted, flushed or opened, with --force neither", arguments: [[], ["--force"]])
    func otherGeneration(_ more: [String]) throws {
        let broker = broker([FakeBroker.device(id: 3, node: "/dev/null")], deletes: 0)
        let console = Recorder()
        let line = ["del", "-n", "3", "--generation", "42"] + more
        #expect(CommandLineTool.run(line, broker.environment(console)) == 4)
        #expect(broker.finish())
        #expect(console.output == [])
        #expect(console.errors.first?.contains("is of generation 43, not 42") == true, "\(console.errors)")
        #expect(try deletes(broker) == [])
    }

    @Test("of the generation that is asked for is deleted")
    func sameGeneration() throws {
        let broker = broker([FakeBroker.device(id: 3, state: .stuck, node: "/dev/null")], deletes: 1)
        let line = ["del", "-n", "3", "--generation", "43", "--force"]
        #expect(CommandLineTool.run(line, broker.environment(Recorder())) == 0)
        #expect(try deletes(broker) == [DeleteRequest(id: 3, generation: 43, force: true)])
    }

    @Test("with --force neither opens nor flushes anything")
    func force() throws {
        let broker = broker([FakeBroker.device(id: 3, state: .stuck, node: "/dev/null")], deletes: 1)
        let console = Recorder()
        // No user could flush this node.
        #expect(CommandLineTool.run(["del", "-n", "3", "--force", "--json"], broker.environment(console)) == 0)
        #expect(console.output == [#"{"deleted":[3]}"#])
        #expect(try deletes(broker) == [DeleteRequest(id: 3, generation: 43, force: true)])
    }

    /// Devices of one set, except for the last two: one of no set, and one of another user's set with the same number.
    private func set(_ nodes: [String]) -> [Device] {
        nodes.enumerated().map { index, node in
            var device = FakeBroker.device(id: 3 + UInt32(index), node: node)
            if index != nodes.count - 2 { device.set = 77 }
            if index == nodes.count - 1 { device.owner = 1001 }
            return device
        }
    }

    @Test("of one device of a set deletes the set, and nobody else's devices of that number")
    func together() throws {
        let folder = TemporaryFolder()
        let nodes = (0..<4).map { folder.file("node\($0)", bytes: 4096) }
        let devices = set(nodes)
        let broker = FakeBroker(connections: 4) { connection, call in
            switch try? BrokerCall(call) {
            case .list(let request):
                let listed = devices.filter { request.id == nil || request.id == $0.id }
                connection.send(Reply(parameters: ListReply(devices: listed).json))
            default: connection.send(Reply())
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "4", "--json"], broker.environment(console)) == 0)
        #expect(broker.finish())
        #expect(console.errors == ["ubd: note: deleted together, as they were added: /dev/ubdb3, /dev/ubdb4"])
        #expect(console.output == [#"{"deleted":[3,4]}"#])
        #expect(try deletes(broker).map(\.id) == [3, 4])
    }

    @Test("of a set takes one that another process is deleting for deleted, once it is gone", arguments: [true, false])
    func going(isGone: Bool) throws {
        let folder = TemporaryFolder()
        // While a device is being deleted its requests fail, and so does its flush.
        let devices = Array(set([folder.file("node", bytes: 4096), "/dev/null", "/nowhere/a", "/nowhere/b"])[..<2])
        let looks = Mutex(0)
        let broker = FakeBroker(connections: 12) { connection, call in
            switch try? BrokerCall(call) {
            case .list(let request):
                var listed = devices.filter { request.id == nil || request.id == $0.id }
                if request.id == 4 {
                    listed[0].state = .deleting
                    looks.withLock { $0 += 1 }
                    if looks.withLock({ $0 }) > 2, isGone {
                        return connection.send(
                            InterfaceError.noSuchDevice(message: "none", remedy: "see 'ubd list'", id: 4).reply)
                    }
                }
                connection.send(Reply(parameters: ListReply(devices: listed).json))
            default: connection.send(Reply())
            }
        }
        let console = Recorder()
        var environment = broker.environment(console)
        // Five seconds.
        environment.pause = { _ in usleep(isGone ? 1000 : 2_600_000) }
        #expect(CommandLineTool.run(["del", "-n", "3", "--json"], environment) == (isGone ? 0 : 5))
        #expect(console.output.joined().contains(isGone ? #"{"deleted":[3]}"# : "is being deleted already"))
        #expect(try deletes(broker).map(\.id) == (isGone ? [3] : []))
    }

    @Test("of a set deletes none of it when one cannot be flushed")
    func noneOfSet() throws {
        let folder = TemporaryFolder()
        // No user could flush the second node.
        let devices = set([folder.file("node", bytes: 4096), "/dev/null", "/nowhere/a", "/nowhere/b"])
        let broker = FakeBroker(connections: 2) { connection, call in
            if case .list(let request)? = try? BrokerCall(call) {
                let listed = devices.filter { request.id == nil || request.id == $0.id }
                connection.send(Reply(parameters: ListReply(devices: listed).json))
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == ExitStatus.failed.rawValue)
        #expect(broker.finish() && console.errors.last?.contains("/dev/null") == true)
        #expect(try deletes(broker).isEmpty)
    }

    @Test("goes on when the node is already gone with its disk")
    func noNode() throws {
        for (target, state) in [("null", DeviceState.live), ("loop", .failed), ("loop", .deleting)] {
            let device = FakeBroker.device(id: 3, target: target, state: state, node: "/nowhere/ublkb3")
            let broker = broker([device], deletes: target == "null" ? 1 : 2)
            #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(Recorder())) == 0)
            #expect(try deletes(broker).count == 1)
        }
    }

    @Test("does not delete unflushed a device whose node is in another /dev")
    func nodeElsewhere() throws {
        let broker = broker([FakeBroker.device(id: 3, node: "/nowhere/ublkb3")], deletes: 1)
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == 1)
        #expect(try deletes(broker) == [])
        #expect(
            console.errors == [
                "ubd: /nowhere/ublkb3 is not in the /dev of this container, so it cannot be flushed; delete it on the "
                    + "host, give the container the host's /dev, or give up unwritten data with "
                    + "'ubd del -n 3 --force'"
            ])
    }

    @Test("does not take a target that it does not know for one that stores nothing")
    func unknownTarget() throws {
        let device = FakeBroker.device(id: 3, target: "later", node: "/nowhere/ublkb3", file: nil)
        let broker = broker([device], deletes: 1)
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(Recorder())) == 1)
        #expect(try deletes(broker) == [])
    }

    @Test(
        "does not delete a device unflushed when another file has its node's name",
        arguments: ["a file", "a FIFO", "a link to a file", "a node of another number"])
    func otherFile(_ what: String) throws {
        let folder = TemporaryFolder()
        let node = folder.path + "/ublkb3"
        switch what {
        case "a file": _ = folder.file("ublkb3", bytes: 4096)
        case "a FIFO": #expect(mkfifo(node, 0o666) == 0)
        case "a link to a file": #expect(symlink(folder.file("file", bytes: 4096), node) == 0)
        default: #expect(symlink("/dev/null", node) == 0)
        }
        let console = Recorder()
        for (state, deleted) in [(DeviceState.live, 0), (.failed, 1)] {
            let device = FakeBroker.device(id: 3, state: state, node: node, readOnly: what == "a FIFO")
            let broker = broker([device], deletes: 1 + deleted)
            var environment = broker.environment(console)
            environment.identity = { _ in
                DeviceFlush.Identity(
                    type: what.contains("node") ? S_IFCHR : S_IFBLK, number: dev_t(ubd_makedev(259, 3)))
            }
            #expect(CommandLineTool.run(["del", "-n", "3"], environment) == (deleted == 0 ? 1 : 0))
            #expect(try deletes(broker).count == deleted)
        }
        #expect(console.errors.count == 1)
        #expect(console.errors.first?.contains("is another file or disk in the /dev of this container") == true)
    }

    @Test("knows the number of a disk from the kernel, and does not take a missing /sys for a missing disk")
    func identity() throws {
        let folder = TemporaryFolder()
        func identity() throws(SystemError) -> DeviceFlush.Identity? {
            try DeviceFlush.Identity.ofDisk("/dev/ublkb3", sysfs: folder.path)
        }
        #expect(throws: SystemError.self) { try identity() }
        let disk = folder.path + "/class/block/ublkb3"
        try FileManager.default.createDirectory(atPath: folder.path + "/class/block", withIntermediateDirectories: true)
        #expect(try identity() == nil)
        try FileManager.default.createDirectory(atPath: disk, withIntermediateDirectories: true)
        for (text, number) in [("259:3\n", dev_t(ubd_makedev(259, 3))), ("7:0", dev_t(ubd_makedev(7, 0)))] {
            try replaceFile(disk + "/dev", with: Array(text.utf8), mode: 0o600)
            #expect(try identity() == DeviceFlush.Identity(type: S_IFBLK, number: number))
        }
        for text in ["", "259", "259:x\n", "1:2:3\n"] {
            try replaceFile(disk + "/dev", with: Array(text.utf8), mode: 0o600)
            #expect(throws: SystemError.self) { try identity() }
        }
    }

    @Test("does not delete what could not be flushed, and says what would")
    func notFlushed() throws {
        // A directory can not be opened for writing: EISDIR.
        let broker = broker([FakeBroker.device(id: 3, node: "/tmp")], deletes: 0)
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == 1)
        #expect(
            console.errors == [
                "ubd: open /tmp: Is a directory; repair its file and try again, or discard unwritten data with "
                    + "'ubd del -n 3 --force'"
            ])
        #expect(try deletes(broker) == [])
    }

    @Test("gives up a flush that hangs, without hanging itself")
    func hangs() throws {
        let folder = TemporaryFolder()
        // Opening a FIFO for reading alone waits for a writer: as a hung device does, for ever.
        mkfifo(folder.path + "/node", 0o666)
        let broker = broker([FakeBroker.device(id: 3, node: folder.path + "/node", readOnly: true)], deletes: 0)
        let console = Recorder()
        var environment = broker.environment(console)
        environment.flushSeconds = 1
        let start = monotonicNanoseconds()
        #expect(CommandLineTool.run(["del", "-n", "3"], environment) == 1)
        #expect(monotonicNanoseconds() - start < 5_000_000_000)
        #expect(console.errors.first?.contains("could not be flushed within 1 s") == true)
        #expect(console.errors.first?.contains("ubd del -n 3 --force") == true)
    }

    @Test("of a device that is not there ends with 4")
    func noSuchDevice() {
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "9"], broker([], deletes: 0).environment(console)) == 4)
        #expect(console.errors == ["ubd: you have no device 9; see 'ubd list'"])
    }

    @Test("of all goes on after a failure, tells each, and ends with the first one's status")
    func all() throws {
        let devices = (1...3).map { FakeBroker.device(id: $0, target: "null", node: "/nowhere/\($0)") }
        // After a failure it looks whether the device goes all the same.
        let broker = broker(devices, deletes: 5) { request in
            switch request.id {
            case 1: InterfaceError.busy(message: "1 is mounted", remedy: "umount", id: 1, holder: "/mnt").reply
            case 2: InterfaceError.failed(message: "2 failed", remedy: "look", step: "STOP_DEV", errno: 5).reply
            default: Reply()
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "--all"], broker.environment(console)) == 5)
        #expect(try deletes(broker).map(\.id) == [1, 2, 3])
        #expect(console.errors == ["ubd: 2 failed; look", "ubd: 1 is mounted; umount"])
    }

    @Test(
        "of all takes what somebody else has deleted meanwhile for deleted, and tells a script what went besides a failure"
    )
    func allVanished() throws {
        let devices = (1...3).map { FakeBroker.device(id: $0, target: "null", node: "/nowhere/\($0)") }
        for fails in [false, true] {
            // After a failure it looks whether the device goes all the same.
            let broker = broker(devices, deletes: fails ? 4 : 3) { request in
                switch request.id {
                case 1: InterfaceError.noSuchDevice(message: "there is none", remedy: "see 'ubd list'", id: 1).reply
                case 2 where fails:
                    InterfaceError.busy(message: "2 is mounted", remedy: "umount", id: 2, holder: "/").reply
                default: Reply()
                }
            }
            let console = Recorder()
            let status = CommandLineTool.run(["del", "--all", "--json"], broker.environment(console))
            let json = try JSON(parsing: console.output.joined())
            #expect(status == (fails ? 5 : 0))
            #expect(json["deleted"] == .array(fails ? [3] : [2, 3]))
            #expect(json["exit"] == (fails ? 5 : nil))
        }
        let one = broker([devices[0]], deletes: 1) { _ in
            InterfaceError.noSuchDevice(message: "there is none", remedy: "see 'ubd list'", id: 1).reply
        }
        #expect(CommandLineTool.run(["del", "-n", "1"], one.environment(Recorder())) == 4)
    }

    @Test("of all waits for a deletion that another process has begun, also before the device's state tells of it")
    func begun() throws {
        let device = FakeBroker.device(id: 1, target: "null", node: "/nowhere/1")
        let looks = Mutex(0)
        let broker = FakeBroker(connections: 5) { connection, call in
            if case .list? = try? BrokerCall(call) {
                looks.withLock { $0 += 1 }
                let gone = InterfaceError.noSuchDevice(message: "none", remedy: "see 'ubd list'", id: 1)
                connection.send(
                    looks.withLock { $0 } < 4 ? Reply(parameters: ListReply(devices: [device]).json) : gone.reply)
            } else {
                let message = "/dev/ubdb1 is \(BrokerAPI.beingDeleted)"
                let holder = BrokerAPI.beingDeleted
                connection.send(InterfaceError.busy(message: message, remedy: "wait", id: 1, holder: holder).reply)
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "--all"], broker.environment(console)) == 0)
        #expect(broker.finish() && console.errors == [])
        #expect(try deletes(broker).count == 1)
    }

    @Test("understands what its child says, and nothing else")
    func outcomes() throws {
        func outcome(_ step: Int, _ error: Int32) throws(SystemError) -> DeviceFlush.Outcome {
            try DeviceFlush.outcome(
                withUnsafeBytes(of: ubd_flush_report(step: Int32(step), error: error)) { Array($0) })
        }
        #expect(try outcome(UBD_FLUSH_DONE, 0) == .flushed)
        #expect(try outcome(UBD_FLUSH_OPEN, EBUSY) == .busy)
        #expect(try outcome(UBD_FLUSH_OPEN, ENXIO) == .noNode)
        #expect(try outcome(UBD_FLUSH_OPEN, ENOTBLK) == .otherFile)
        #expect(try outcome(UBD_FLUSH_OPEN, EACCES) == .failed(step: "open", errno: EACCES))
        #expect(try outcome(UBD_FLUSH_SYNC, EIO) == .failed(step: "fsync", errno: EIO))
        #expect(throws: SystemError.self) { try outcome(UBD_FLUSH_DONE, 5) }
        #expect(throws: SystemError.self) { try outcome(9, 0) }
        // The child died before it reported, or something else wrote into the pipe.
        for nonsense in [[], [0], [UInt8](repeating: 0, count: 9)] {
            #expect(throws: SystemError.self) { try DeviceFlush.outcome(nonsense) }
        }
    }

    @Test("flushes only what it may write, and tells which call failed")
    func calls() throws {
        let folder = TemporaryFolder()
        let deadline = Deadline(seconds: 10)
        func run(_ node: String, readOnly: Bool) throws(SystemError) -> DeviceFlush.Outcome {
            try DeviceFlush.run(
                node: node, DeviceFlush.Identity(asFound: node), readOnly: readOnly, deadline: deadline)
        }
        #expect(try run(folder.file("file", bytes: 4096), readOnly: false) == .flushed)
        #expect(try run(folder.path + "/nothing", readOnly: false) == .noNode)
        #expect(try run(folder.path, readOnly: false) == .failed(step: "open", errno: EISDIR))
        // A file that cannot be flushed: EINVAL.
        #expect(try run("/dev/null", readOnly: false) == .failed(step: "fsync", errno: EINVAL))
        #expect(try run("/dev/null", readOnly: true) == .flushed)
    }

    @Test("gives its child nothing that the caller has open: one that hangs must hold nobody's pipe")
    func childHoldsNothing() throws {
        let folder = TemporaryFolder()
        let fifo = folder.path + "/node"
        mkfifo(fifo, 0o666)
        // A descriptor that a careless shell would leave to its children.
        let leaky = dup(2)
        defer { close(leaky) }
        // A thread of its own: the tests' pool may have no free thread for this wait.
        let outcome = Answer()
        let ended = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            outcome.value.withLock {
                $0 = try? DeviceFlush.run(
                    node: fifo, DeviceFlush.Identity(asFound: fifo), readOnly: true, deadline: Deadline(seconds: 60))
            }
            ended.signal()
        }
        let files = try #require(Self.filesOfChild(reading: fifo))
        #expect(files.count == 4 && files.prefix(3).allSatisfy { $0 == "/dev/null" }, "\(files)")
        #expect(files.count == 4 && files[3].hasPrefix("pipe:"), "\(files)")
        // Its open ends when there is a writer.
        let writer = open(fifo, O_RDWR)
        defer { close(writer) }
        #expect(ended.wait(timeout: .now() + 60) == .success)
        #expect(outcome.value.withLock { $0 } == .flushed)
    }

    /// The result of a thread.
    private final class Answer: Sendable {
        let value = Mutex<DeviceFlush.Outcome?>(nil)
    }

    /// The open files of the child that waits in open(2), in the order of the numbers; nil when there is none within 30
    /// s.
    private static func filesOfChild(reading fifo: String) -> [String]? {
        let deadline = Deadline(seconds: 30)
        while !deadline.hasPassed {
            for pid in listFolder("/proc") where Int32(pid) != nil {
                guard (try? readFile("/proc/\(pid)/comm")) == Array("ubd-flush\n".utf8),
                    let stat = try? readFile("/proc/\(pid)/stat"),
                    String(decoding: stat, as: UTF8.self).contains(") S \(getpid()) ")
                else { continue }
                let numbers = listFolder("/proc/\(pid)/fd").compactMap { Int($0) }.sorted()
                // The child first closes inherited descriptors, then waits for the FIFO's writer.
                guard let call = try? readFile("/proc/\(pid)/syscall"), call.starts(with: Array("257 ".utf8)) else {
                    continue
                }
                return numbers.compactMap { linkTarget("/proc/\(pid)/fd/\($0)") }
            }
            usleep(10_000)
        }
        return nil
    }
}

@Suite("Who has a device open")
struct DeviceOpenerTests {
    @Test("names a process of the caller's that has a file open, and nobody when none has")
    func opener() throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "ubd-proc-\(UUID())")
        defer { try? FileManager.default.removeItem(at: folder) }
        let files = folder.appending(path: "17/fd")
        try FileManager.default.createDirectory(at: files, withIntermediateDirectories: true)
        symlink("/dev/ublkb7", files.appending(path: "3").path)
        try "bash\n".write(to: folder.appending(path: "17/comm"), atomically: false, encoding: .utf8)
        #expect(DeviceOpener.find("/dev/ublkb7", proc: folder.path) == "process 17 (bash)")
        #expect(DeviceOpener.find("/dev/ublkb0", proc: folder.path) == nil)
        // It reads the device, and serves no file system.
        #expect(DeviceOpener.servers(of: "/dev/ublkb7", proc: folder.path).isEmpty)
        symlink("/dev/fuse", files.appending(path: "4").path)
        #expect(DeviceOpener.servers(of: "/dev/ublkb7", proc: folder.path) == ["17"])
    }
}

@Suite("The helper that looks for a device's holder")
struct HolderNameTests {
    @Test("says in one line what it found, which is understood again")
    func line() {
        for holding in [Holding.free, .held("mounted on /mnt/a b"), .unknown("read /proc/swaps: Permission denied")] {
            #expect(HolderName.holding(HolderName.report(holding) + "\n") == holding)
        }
        #expect(HolderName.report(.held("mounted on /mnt/a\nfree")) == "held mounted on /mnt/a?free")
    }

    @Test(
        "is never taken for \"free\" when it says something else, or nothing",
        arguments: ["", "\n", "held", "unknown", "fre", "freely", "held\n"])
    func nonsense(_ line: String) {
        guard case .unknown = HolderName.holding(line) else {
            Issue.record("\(line) was understood")
            return
        }
    }

    @Test("is given up when it takes too long, and a disk that there is not is free")
    func runs() throws {
        let deadline = Deadline(seconds: 10)
        #expect(HolderName.find("ublkb4711", executable: Program.path, deadline: deadline) == .free)
        guard case .unknown = HolderName.find("x", executable: "/bin/false", deadline: deadline) else {
            Issue.record("a helper that fails was believed")
            return
        }
        let folder = TemporaryFolder()
        let script = folder.path + "/slow"
        try "#!/bin/sh\nexec sleep 60\n".write(toFile: script, atomically: true, encoding: .utf8)
        chmod(script, 0o755)
        guard case .unknown(let why) = HolderName.find("x", executable: script, deadline: Deadline(seconds: 1)) else {
            Issue.record("a helper that hangs was believed")
            return
        }
        // Another test may start a process just then, which holds the script open for writing for a moment (ETXTBSY).
        #expect(why.contains("within 1 s") || why.contains("Text file busy"))
    }
}
