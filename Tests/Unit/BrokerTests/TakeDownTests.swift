import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("The end of the host")
struct TakeDownTests {
    private func takeDown(_ host: Host, deadline: Int = 20_000, silence: Int = 10_000) throws {
        var isDone = false
        let operation = TakeDown(host.broker, deadline: deadline, silence: silence)
        operation.begin { isDone = true }
        try host.run { isDone }
    }

    @Test("every device that nobody uses is deleted, whoever owns it", arguments: [[], [.safeStop]] as [UblkFeatures])
    func deletesAll(_ features: UblkFeatures) throws {
        let host = try Host()
        host.kernel.features = features
        _ = try host.add().get()
        _ = try host.add(as: Host.bob).get()
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        try takeDown(host)
        #expect(host.leftovers == [])
    }

    @Test("without devices there is nothing to do")
    func nothing() throws {
        let host = try Host()
        try takeDown(host)
        #expect(host.kernel.log == [])
    }

    @Test("a device in use serves on")
    func spares() throws {
        let host = try Host()
        _ = try host.add().get()
        host.holding = .held("mounted on /")
        try takeDown(host)
        #expect(host.broker.devices[0]?.info.state == .live)
        #expect(host.workers[0].isAlive)
    }

    @Test(
        "a device that a program has open is ended only when its worker has requests and ends none of them",
        arguments: [
            ("answers nothing", 2, 7, true), ("has nothing to do", 0, 7, false),
            ("has requests that are not known", nil, 7, false), ("ends what is not known", 2, nil, false),
        ] as [(String, Int?, Int?, Bool)])
    func endsSilent(_ what: String, _ inFlight: Int?, _ done: Int?, _ isEnded: Bool) throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        host.requestsInFlight = inFlight
        host.requestsDone = { done }
        try takeDown(host, silence: 50)
        #expect(host.broker.devices.isEmpty == isEnded, "\(what)")
        #expect(host.workers[0].isAlive == !isEnded, "\(what)")
    }

    @Test("one whose worker gets on with its requests serves on")
    func sparesSlow() throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        host.requestsInFlight = 2
        var ended = 0
        host.requestsDone = {
            ended += 1
            return ended
        }
        try takeDown(host, silence: 50)
        #expect(host.broker.devices[0]?.info.state == .live && host.workers[0].isAlive)
    }

    @Test("a device that does not stop is not waited for longer than the deadline")
    func hangs() throws {
        let host = try Host()
        _ = try host.add().get()
        host.kernel.hangsUntil[.stopDevice] = { false }
        let before = monotonicNanoseconds()
        try takeDown(host, deadline: 200)
        #expect(monotonicNanoseconds() - before < 5_000_000_000)
    }

    @Test("no worker is started for a device whose own is dead: it is deleted, too")
    func mendsNothing() throws {
        let first = try Host()
        _ = try first.add().get()
        let device = try #require(first.broker.devices[0])
        let second = try Host(reusing: first.folder, takesDown: true)
        second.kernel.addDevice(0, generation: device.info.generation, state: .quiesced, pid: 4711)
        var isCompared = false
        try second.broker.reconcile { isCompared = true }
        try second.run { isCompared }
        try takeDown(second)
        #expect(second.workers.isEmpty)
        #expect(second.kernel.devices.isEmpty)
        #expect(listFolder(first.folder + "/state").isEmpty)
    }

    @Test("a process's control group is found where there is one")
    func findsGroup() {
        let bytes = { (text: String) in Array(text.utf8) }
        let unit = "/system.slice/ubd-broker.service"
        #expect(Survivors.group(of: bytes("0::\(unit)\n")) == unit)
        #expect(Survivors.group(of: bytes("1:name=systemd:/a\n0::/b\n")) == "/b")
        #expect(Survivors.group(of: bytes("0::/\n")) == nil)
        #expect(Survivors.group(of: bytes("1:name=systemd:/a\n")) == nil)
    }
}
