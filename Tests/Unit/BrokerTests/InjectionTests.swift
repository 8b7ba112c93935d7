import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

/// Every step of an add fails, one at a time: everything is undone, the error names the step, and the next add works.
@Suite("Every step of an add, failing")
struct InjectionTests {
    /// Adds a device with a fault of the host, and once more without it.
    private func fails(_ host: Host, _ what: String, saying part: String? = nil) throws {
        let result = try host.add()
        host.interfere = nil
        host.startError = nil
        host.kernel.failures = [:]
        host.kernel.beforeAnswer = [:]
        guard case .failure(let error) = result else {
            Issue.record("\(what): the add succeeded")
            return
        }
        if let part { #expect(error.message.contains(part), "\(what): \(error)") }
        #expect(host.leftovers == [], "\(what)")
        #expect(try host.add().get().0.state == .live, "after \(what)")
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [], "after \(what) and another device")
    }

    static let errors = [EIO, EBUSY, EINVAL, ENOMEM, ENODEV, EPERM, EINTR, EAGAIN, EOPNOTSUPP, ETIMEDOUT]

    @Test(
        "each control command, with each error",
        arguments: [UblkControlOperation.addDevice, .setParameters, .startDevice, .getParameters])
    func commands(_ operation: UblkControlOperation) throws {
        let host = try Host()
        for errno in InjectionTests.errors {
            host.kernel.failures[operation] = errno
            try fails(host, "\(operation) with \(SystemError.name(errno))", saying: SystemError.message(errno))
        }
    }

    @Test("where the kernel does not tell the queues' processors, the device is made all the same")
    func affinity() throws {
        let host = try Host()
        host.kernel.failures[.getQueueAffinity] = EIO
        #expect(try host.add().get().0.state == .live)
    }

    @Test("starting the process", arguments: [EAGAIN, ENOMEM, EPERM, ENOSPC, EMFILE])
    func clone(_ errno: Int32) throws {
        let host = try Host()
        host.startError = errno
        try fails(host, "clone", saying: SystemError.message(errno))
    }

    @Test("each step of the launcher, and each is told by its name")
    func launcher() throws {
        let host = try Host()
        for step in Int32(1)...15 {
            let name = StartFailure.launcherStep(step)
            #expect(!name.contains("(step"), "launcher step \(step) has no name")
            host.interfere = { (moment, worker) throws(SystemError) in
                guard moment == .running else { return false }
                worker.tell(.launchFailed(step: step, errno: ENOMEM))
                worker.dieSoon(.exited(127))
                return true
            }
            try fails(host, name, saying: name)
        }
    }

    @Test(
        "each failure that a worker can tell, at each of the moments when it may",
        arguments: [FakeWorker.Moment.launch, .serve])
    func told(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        for step in WorkerFailure.Step.allCases {
            host.interfere = { (moment, worker) throws(SystemError) in
                guard moment == at else { return false }
                worker.tell(.message(.failed(WorkerFailure(step, errno: ENOMEM))))
                worker.dieSoon(.exited(1))
                return true
            }
            try fails(host, "\(step)")
        }
    }

    static let deaths: [ProcessChange] = [
        .killed(signal: SIGKILL), .killed(signal: SIGSYS), .killed(signal: SIGSEGV), .exited(0), .exited(3), .gone,
    ]

    @Test(
        "a worker that dies at any moment, in any way", arguments: [FakeWorker.Moment.running, .launch, .serve, .stop])
    func deaths(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        for death in InjectionTests.deaths {
            host.interfere = { (moment, worker) throws(SystemError) in
                if moment == at { worker.dieSoon(death) }
                return moment == at
            }
            try fails(host, "\(death) at \(at)", saying: "\(death)")
        }
    }

    @Test(
        "a worker that says what it must not at any moment",
        arguments: [FakeWorker.Moment.running, .launch, .serve, .stop])
    func violations(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        host.interfere = { (moment, worker) throws(SystemError) in
            if moment == at { worker.tell(.violation("files in a message")) }
            return moment == at
        }
        try fails(host, "\(at)", saying: "files in a message")
    }

    @Test("a worker that says what it must not while the kernel starts its device is killed once that is live")
    func violatesDuringStart() throws {
        for command in [UblkControlOperation.startDevice, .getParameters] {
            let host = try Host()
            host.kernel.beforeAnswer[command] = {
                host.workers.first?.tell(.violation("files in a message"))
            }
            _ = try host.add().get()
            try host.run { host.workers[0].signals.contains("KILL") }
            #expect(host.workers[0].violation == "files in a message", "\(command)")
        }
    }

    @Test("a disk that can not be", arguments: [TargetOption.largestSize + 512, .max])
    func geometry(_ size: UInt64) throws {
        let host = try Host()
        host.geometry.size = size
        #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(host.leftovers == [])
    }

    @Test(
        "a message or signal that can not be sent",
        arguments: [FakeWorker.Moment.launch, .serve, .stop, .resume])
    func sending(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        for errno in [EAGAIN, ENOBUFS, EMSGSIZE, ETOOMANYREFS, EPERM] {
            host.interfere = { (moment, _) throws(SystemError) in
                if moment == at { throw SystemError("send", errno) }
                return false
            }
            try fails(host, "\(at) with \(SystemError.name(errno))", saying: SystemError.message(errno))
        }
    }

    @Test("a message to a worker that has just died: its death is told", arguments: [FakeWorker.Moment.launch, .serve])
    func sendingToTheDead(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        host.interfere = { (moment, worker) throws(SystemError) in
            guard moment == at else { return false }
            worker.dieSoon(.killed(signal: SIGILL))
            throw SystemError("send", EPIPE)
        }
        try fails(host, "\(at)", saying: "SIGILL")
    }

    @Test("a client that goes away at any moment of its worker's", arguments: FakeWorker.Moment.allCases)
    func client(_ at: FakeWorker.Moment) throws {
        let host = try Host()
        var (add, isOver): (AddOperation?, Bool) = (nil, false)
        host.interfere = { (moment, _) throws(SystemError) in
            if moment == at { add?.clientGone() }
            return false
        }
        add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { _ in isOver = true }
        try host.run { isOver }
        #expect(host.leftovers == [])
        host.interfere = nil
        #expect(try host.add().get().0.state == .live)
    }

    @Test("a client that has gone away while the kernel started its device, unheard")
    func unheard() throws {
        let host = try Host()
        var (isThere, isOver) = (true, false)
        host.kernel.beforeAnswer[.getParameters] = { isThere = false }
        _ = host.broker.add(AddRequest(target: "null"), peer: Host.alice, isWanted: { isThere }) { _ in isOver = true }
        try host.run { isOver }
        #expect(host.leftovers == [])
        host.kernel.beforeAnswer = [:]
        #expect(try host.add().get().0.state == .live)
    }

    @Test("the records: that of the device, and that for udev", arguments: ["state", "udev"])
    func records(_ name: String) throws {
        let host = try Host()
        let folder = host.folder + "/" + name
        #expect(rmdir(folder) == 0)
        close(creat(folder, 0o600))
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect("\(String(describing: error))".contains("record"))
        unlink(folder)
        mkdir(folder, 0o755)
        #expect(host.leftovers == [])
        #expect(try host.add().get().0.state == .live)
    }

    @Test("the node: not there, or another one")
    func node() throws {
        let host = try Host()
        let node = host.folder + "/ublkb0"
        host.kernel.beforeAnswer[.getParameters] = { unlink(node) }
        try fails(host, "no node")
        host.kernel.beforeAnswer[.getParameters] = {
            unlink(node)
            mknod(node, S_IFBLK | 0o600, dev_t(7 << 8 | 77))
        }
        try fails(host, "another node")
    }
}
