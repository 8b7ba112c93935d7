import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import BrokerInterface
@testable import ubd_broker

@Suite("Adding a device")
struct AddTests {
    @Test("of a file that goes through the page cache says why: that it takes no direct I/O only where it takes none")
    func obstacles() throws {
        for obstacle in Geometry.DirectObstacle.allCases {
            let host = try Host()
            host.geometry.attributes = [.buffered, .directRefused]
            host.geometry.directObstacle = obstacle
            let (device, notices) = try host.add().get()
            #expect(device.buffered)
            #expect(notices.map(\.code) == ["buffered"])
            #expect(notices[0].message.contains("does not take direct I/O") == (obstacle == .file))
            #expect(notices[0].message.contains("page cache"))
        }
    }

    @Test("a user whom the policy allows gets a live device, its node and its link")
    func adds() throws {
        let host = try Host()
        let (device, notices) = try host.add().get()
        #expect(device.state == .live)
        #expect(device.owner == 1000)
        #expect(device.sizeBytes == 1 << 20)
        #expect(notices.isEmpty)
        #expect(device.link == host.folder + "/ubdb0")
        #expect(linkTarget(host.folder + "/ubdb0") == "ublkb0")
        var status = stat()
        #expect(stat(host.folder + "/ublkb0", &status) == 0)
        #expect(status.st_uid == 1000)
        #expect(status.st_mode & 0o777 == 0o600)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("on a kernel that is known to be bad is refused, with the report and the remedy")
    func badKernel() throws {
        let host = try Host(release: "6.18.4+deb14-amd64")
        guard case .failure(.kernelUnsupported(let message, let remedy, _)) = try host.add() else {
            Issue.record("not refused")
            return
        }
        #expect(message.contains("github.com/kvcache-ai/AgentENV/issues/20"))
        #expect(remedy.contains("6.18.6") && remedy.contains("--allow-bad-kernel"))
        #expect(host.kernel.devices.isEmpty && host.workers.isEmpty)
        #expect(host.leftovers == [])
    }

    @Test("on a kernel that is known to be bad works where the administrator allows it")
    func allowedBadKernel() throws {
        let host = try Host(release: "6.18.4+deb14-amd64", allowsBadKernel: true)
        #expect(try host.add().get().0.state == .live)
        #expect(try host.delete(0) == nil)
    }

    @Test("a broker that may not give the node away waits until udev has")
    func waitsForUdev() throws {
        let host = try Host(mayChown: false)
        let node = host.folder + "/ublkb0"
        var isGiven = false
        host.loop.after(milliseconds: 300) {
            isGiven = chmod(node, 0o600) == 0 && chown(node, 1000, gid_t.max) == 0
        }
        let (device, _) = try host.add().get()
        #expect(isGiven)
        #expect(device.state == .live)
        #expect(device.link == host.folder + "/ubdb0")
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("when udev never does, the add fails, names it, and leaves nothing")
    func givesUpOnUdev() throws {
        let host = try Host(mayChown: false)
        let error = try #require(throws: InterfaceError.self) { try host.add().get() }
        #expect(error.message.contains("udev did not give"))
        #expect(error.remedy.contains("59-ubd.rules"))
        #expect(host.leftovers == [])
    }

    @Test("the worker is stopped before START_DEV and runs again after it")
    func stopsAroundStart() throws {
        let host = try Host()
        var signalsAtStart: [String] = []
        host.kernel.beforeAnswer[.startDevice] = { signalsAtStart = host.workers[0].signals }
        _ = try host.add().get()
        #expect(signalsAtStart == ["STOP"])
        #expect(host.workers[0].signals == ["STOP", "CONT"])
    }

    @Test("a worker that the broker can not watch is dead before its uid is anybody's again")
    func keepsUIDOfUnusable() throws {
        let host = try Host()
        host.fault = .unusable
        let free = host.broker.uids.free
        var isDead = false
        host.interfere = { (_, worker) in
            worker.survivesKill = true
            return false
        }
        host.loop.after(milliseconds: 300) {
            #expect(host.broker.uids.free == free - 1)
            isDead = true
            host.workers[0].die(.killed(signal: SIGKILL))
        }
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(isDead)
        #expect(error?.message.contains("watch the worker") == true)
        #expect(host.leftovers == [])
    }

    @Test("the record is written before ADD_DEV is sent")
    func recordsFirst() throws {
        let host = try Host()
        var steps: [DeviceRecord.Step] = []
        host.kernel.beforeAnswer[.addDevice] = { steps = (try? host.broker.store.load())?.records.map(\.step) ?? [] }
        _ = try host.add().get()
        #expect(steps == [.adding])
        #expect(try host.broker.store.load().records.map(\.step) == [.live])
    }

    @Test("the owner is told all that is known of the device")
    func tellsAll() throws {
        let host = try Host()
        let (device, _) = try host.add(AddRequest(target: "null", id: 5)).get()
        for (name, value) in Mirror(reflecting: device).children {
            switch value {
            case let number as any BinaryInteger where name != "deaths": #expect("\(number)" != "0", "\(name ?? "")")
            case let text as String: #expect(!text.isEmpty, "\(name ?? "")")
            default: continue
            }
        }
    }

    @Test("fewer queues than asked are said so")
    func saysFewerQueues() throws {
        let host = try Host()
        let (device, notices) = try host.add(AddRequest(target: "null", queues: 4)).get()
        #expect(device.queues == 2)
        #expect(notices.map(\.code) == ["queues"])
    }

    @Test(
        "whatever a worker does wrong, the add fails and nothing is left",
        arguments: FakeWorker.Fault.allCases.filter { $0 != .diesInRehearsal })
    func undoesAfterWorkerFault(_ fault: FakeWorker.Fault) throws {
        let host = try Host()
        host.fault = fault
        #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(host.leftovers == [])
        host.fault = nil
        #expect(try host.add().get().0.state == .live)
    }

    @Test(
        "whatever control command fails, the add fails and nothing is left",
        arguments: [UblkControlOperation.addDevice, .setParameters, .startDevice, .getParameters])
    func undoesAfterKernelFault(_ operation: UblkControlOperation) throws {
        let host = try Host()
        host.kernel.failures[operation] = EIO
        #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(host.leftovers == [])
    }

    @Test("a worker that dies while START_DEV runs is undone only after the command's end")
    func waitsForStart() throws {
        let host = try Host()
        host.kernel.beforeAnswer[.startDevice] = { host.workers[0].die(.killed(signal: SIGKILL)) }
        #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(host.leftovers == [])
        let start = try #require(host.kernel.log.firstIndex(of: "startDevice 0"))
        let stop = try #require(host.kernel.log.firstIndex(of: "stopDevice 0"))
        #expect(start < stop)
    }

    @Test(
        "a client that goes away in the middle of any command leaves nothing",
        arguments: [UblkControlOperation.addDevice, .setParameters, .startDevice, .getParameters])
    func undoesWhenClientGoes(_ operation: UblkControlOperation) throws {
        let host = try Host()
        var add: AddOperation?
        var ended = false
        host.kernel.beforeAnswer[operation] = { add?.clientGone() }
        add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { _ in ended = true }
        try host.run { ended }
        #expect(host.leftovers == [])
    }

    @Test("a client that goes away before it has sent its file leaves nothing")
    func undoesWhenClientSendsNothing() throws {
        let host = try Host()
        let error = #expect(throws: InterfaceError.self) {
            try host.add(AddRequest(target: "loop")) { _ in }.get()
        }
        #expect(error?.name == "io.ubd.Broker.BadFile")
        #expect(host.kernel.log.isEmpty)
        #expect(host.leftovers == [])
    }

    @Test("a file that is parked is never received, and is let go with the device")
    func parksFiles() throws {
        let host = try Host()
        let path = host.folder + "/parked"
        let (device, _) = try host.add(AddRequest(target: "loop")) { socket in
            let file = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            _ = try? SystemCalls.send(socket, [1], files: [file])
            close(file)
        }.get()
        let open = listFolder("/proc/self/fd").compactMap { linkTarget("/proc/self/fd/\($0)") }
        #expect(!open.contains(path))
        #expect(try host.delete(device.id) == nil)
        try host.run { host.leftovers.isEmpty }
    }

    @Test("a worker that is killed is told as killed, not as what it broke", arguments: [false, true])
    func namesDeath(_ whileVerified: Bool) throws {
        let host = try Host()
        if whileVerified {
            host.fault = .diesWhenVerified
            host.sandboxProblem = "2 threads instead of 3"
        } else {
            host.fault = .closesSocket
        }
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.message == "the worker did not get ready: it was killed by SIGKILL")
        #expect(host.leftovers == [])
    }

    @Test("a worker whose sandbox does not stand never goes live")
    func refusesUnconfined() throws {
        let host = try Host()
        host.sandboxProblem = "task 1: Seccomp 0"
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.message.contains("Seccomp 0") == true)
        #expect(!host.kernel.log.contains("startDevice 0"))
        #expect(host.leftovers == [])
    }

    @Test("another server's device number is stepped over, and never deleted")
    func stepsOverForeignDevices() throws {
        let host = try Host()
        host.kernel.addForeignDevice(0)
        #expect(try host.add().get().0.id == 1)
        let error = #expect(throws: InterfaceError.self) {
            try host.add(AddRequest(target: "null", id: 0)).get()
        }
        #expect(error?.name == "io.ubd.Broker.IdInUse")
        #expect(host.kernel.devices[0] != nil)
        #expect(!host.kernel.log.contains("deleteDeviceAsync 0"))
    }

    @Test("a number that one of our devices has is refused")
    func refusesUsedNumber() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", id: 5)).get()
        let error = #expect(throws: InterfaceError.self) {
            try host.add(AddRequest(target: "null", id: 5), as: Host.bob).get()
        }
        #expect(error?.name == "io.ubd.Broker.IdInUse")
    }

    @Test("a user outside the policy is told the rule that would allow it")
    func namesTheRule() throws {
        let host = try Host()
        let error = #expect(throws: InterfaceError.self) { try host.add(as: Host.mallory).get() }
        guard case .notPermitted(let message, let remedy, let rule) = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(message.contains("not permitted"))
        #expect(rule == "allow group=50 target=* max-devices=3 max-memory=1G")
        #expect(remedy.contains("group 50"))
    }

    @Test("the quota counts devices of the user, and only of the user")
    func countsDevices() throws {
        let host = try Host()
        for _ in 0..<3 { _ = try host.add().get() }
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.name == "io.ubd.Broker.QuotaReached")
        #expect(try host.add(as: Host.bob).get().0.state == .live)
        #expect(try host.delete(1) == nil)
        #expect(try host.add().get().0.id == 1)
    }

    @Test("no worker uid is ever used by two devices, and running out of them is an error, not a crash")
    func leasesUIDs() throws {
        let host = try Host(uids: 2)
        let uids = try [host.add().get(), host.add().get()].map(\.0.workerUid)
        #expect(Set(uids).count == 2)
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.name == "io.ubd.Broker.QuotaReached")
        #expect(try host.delete(0) == nil)
        #expect(try host.add().get().0.state == .live)
    }

    @Test("a name that something else has is left alone, and said so")
    func leavesForeignLink() throws {
        let host = try Host()
        #expect(symlink("elsewhere", host.folder + "/ubdb0") == 0)
        let (device, notices) = try host.add().get()
        #expect(device.link == nil)
        #expect(notices.map(\.code) == ["link"])
        #expect(try host.delete(0) == nil)
        #expect(linkTarget(host.folder + "/ubdb0") == "elsewhere")
    }
}
