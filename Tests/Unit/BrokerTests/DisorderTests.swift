import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

/// An event in the wrong phase is a bug in ubd. `DeviceOperation` then calls the owner's `outOfOrder`.
@Suite("When its steps come out of order")
struct DisorderTests {
    private func device(_ host: Host) throws -> ManagedDevice { try #require(host.broker.devices[0]) }

    @Test(
        "an add fails and leaves nothing",
        arguments: [UblkControlOperation.addDevice, .setParameters, .startDevice, .getParameters])
    func add(_ operation: UblkControlOperation) throws {
        let host = try Host()
        var add: AddOperation?
        var failure: InterfaceError?
        host.kernel.beforeAnswer[operation] = { add?.outOfOrder() }
        add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { answer in
            if case .failed(let error) = answer { failure = error }
        }
        try host.run { failure != nil }
        #expect(failure == StartErrors.outOfOrder)
        #expect(host.leftovers == [])
    }

    @Test("an add ends when a step finds nothing of what an earlier one should have left")
    func addLacks() throws {
        for lack in [
            { host, add in host.kernel.beforeAnswer[.addDevice] = { add()?.device = nil } },
            { host, _ in host.whileVerified = { [unowned host] in host.broker.devices[0]?.worker = nil } },
        ] as [(Host, @escaping () -> AddOperation?) -> Void] {
            let host = try Host()
            var add: AddOperation?
            var failure: InterfaceError?
            lack(host) { add }
            add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { answer in
                if case .failed(let error) = answer { failure = error }
            }
            try host.run { failure != nil }
            #expect(failure == StartErrors.outOfOrder)
        }
    }

    @Test("a recovery ends when the worker is not there that the kernel is to be told of")
    func recoveryLacks() throws {
        let host = try recovering(.startUserRecovery) { host, _ in
            host.whileVerified = { [unowned host] in host.broker.devices[0]?.worker = nil }
        }
        try host.run { host.broker.devices[0]?.info.state == .failed }
        #expect(try device(host).info.reason?.contains("operation-order") == true)
    }

    @Test("an add that is given up waits for the kernel to say which processors a queue has")
    func addWhileAsking() throws {
        let host = try Host()
        var mayAnswer = false
        host.kernel.hangsUntil[.getQueueAffinity] = { mayAnswer }
        let add = host.broker.add(AddRequest(target: "null"), peer: Host.alice) { _ in }
        try host.run { host.kernel.log.contains("getQueueAffinity 0") }
        add?.clientGone()
        var rounds = 0
        try host.run {
            rounds += 1
            return rounds > 20
        }
        #expect(host.kernel.log.last == "getQueueAffinity 0")
        mayAnswer = true
        try host.run { host.leftovers.isEmpty }
    }

    @Test("a new worker that dies while the kernel is asked for its processors is replaced after the answer")
    func recoveryWhileAsking() throws {
        var mayAnswer = true
        let host = try recovering(.startUserRecovery) { host, _ in
            mayAnswer = false
            host.kernel.beforeAnswer[.startUserRecovery] = { mayAnswer = true }
        }
        host.kernel.hangsUntil[.getQueueAffinity] = { mayAnswer }
        try host.run { host.workers.count == 2 && host.kernel.log.last == "getQueueAffinity 0" }
        host.workers[1].die(.killed(signal: SIGKILL))
        try host.run { host.workers[1].hasEnded }
        #expect(host.kernel.log.last == "getQueueAffinity 0")
        mayAnswer = true
        try host.run { host.workers.count == 3 && host.broker.devices[0]?.info.state == .live }
    }

    /// A device that gets a new worker; `happens` while the kernel has that command.
    private func recovering(
        _ operation: UblkControlOperation, _ happens: @escaping (Host, RecoverOperation) -> Void
    ) throws -> Host {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.kernel.quiesce(0)
        host.kernel.beforeAnswer[operation] = { [unowned host] in
            host.kernel.beforeAnswer = [:]
            guard let recovery = host.broker.devices[0]?.recovery as? RecoverOperation else {
                Issue.record("no recovery")
                return
            }
            happens(host, recovery)
        }
        host.workers[0].die(.killed(signal: SIGSEGV))
        return host
    }

    @Test(
        "a recovery fails its device, whose new worker does not die before the kernel has answered",
        arguments: [UblkControlOperation.getDeviceInfo, .startUserRecovery, .endUserRecovery])
    func recover(_ operation: UblkControlOperation) throws {
        var signals: [String]?
        let host = try recovering(operation) { host, recovery in
            recovery.outOfOrder()
            signals = host.workers.last?.signals
        }
        try host.run { host.broker.devices[0]?.info.state == .failed }
        #expect(signals?.contains("KILL") == false)
        #expect(host.workers.allSatisfy { $0.hasEnded })
        #expect(try device(host).recovery == nil && device(host).info.reason?.contains("operation-order") == true)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a recovery whose device is deleted meanwhile is over, and the deletion waits for the kernel's answer")
    func recoverAndDelete() throws {
        var isDeleted = false
        let host = try recovering(.endUserRecovery) { host, recovery in
            recovery.outOfOrder()
            host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { error in
                #expect(error == nil)
                isDeleted = true
            }
            #expect(host.workers.last?.signals == ["STOP"])
        }
        try host.run { isDeleted }
        #expect(host.leftovers == [])
    }

    @Test("an upgrade that only tries the new program out leaves the old worker alone")
    func rehearsal() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon, .quiesce]
        _ = try host.add().get()
        host.installed = try Host.program()
        var failure: InterfaceError?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
            if case .failure(let error) = result { failure = error }
        }
        try #require(try device(host).upgrade as? UpgradeOperation).outOfOrder()
        #expect(failure == StartErrors.outOfOrder)
        try host.run { host.workers.last?.hasEnded == true }
        #expect(host.workers.count == 2 && !host.workers[0].hasEnded)
        #expect(try device(host).info.state == .live && device(host).upgrade == nil)
    }

    @Test("an upgrade that has begun kills the old worker, whose death is mended")
    func upgrade() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon, .quiesce]
        _ = try host.add().get()
        host.installed = try Host.program()
        host.kernel.beforeAnswer[.getDeviceInfo] = { host.kernel.quiesce(0) }
        host.kernel.beforeAnswer[.quiesceDevice] = {
            (host.broker.devices[0]?.upgrade as? UpgradeOperation)?.outOfOrder()
        }
        var failure: InterfaceError?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
            if case .failure(let error) = result { failure = error }
        }
        try host.run { failure != nil && host.broker.devices[0]?.info.state == .live }
        #expect(failure == StartErrors.outOfOrder)
        let info = try device(host).info
        #expect(info.deaths == 1 && info.lastDeath == "was killed for an upgrade")
        // The first worker, the rehearsing one, and the one that serves now.
        #expect(host.workers.map(\.hasEnded) == [true, true, false])
    }

    @Test("a deletion is refused and the device serves on, unless the kernel has stopped it", arguments: [EBUSY, 0])
    func delete(_ errno: Int32) throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        if errno != 0 { host.kernel.failures[.tryStopDevice] = errno }
        host.kernel.beforeAnswer[.tryStopDevice] = {
            host.kernel.beforeAnswer = [:]
            (host.broker.devices[0]?.deletion as? DeleteOperation)?.outOfOrder()
        }
        let error = try host.delete(0)
        #expect(host.kernel.log.filter { $0 == "tryStopDevice 0" }.count == 1)
        if errno != 0 {
            #expect(error?.message.contains("operation-order") == true)
            #expect(try device(host).info.state == .live && !host.workers[0].hasEnded)
            host.kernel.failures = [:]
            #expect(try host.delete(0) == nil)
        } else {
            #expect(error == nil)
        }
        #expect(host.leftovers == [])
    }

    @Test(
        "what takes a device down begins again, and touches no other server's device that has got the number",
        arguments: [UblkControlOperation.stopDevice, .deleteDeviceAsync])
    func teardown(_ operation: UblkControlOperation) throws {
        let host = try Host()
        _ = try host.add().get()
        host.kernel.beforeAnswer[operation] = {
            host.kernel.beforeAnswer = [:]
            (host.broker.devices[0]?.teardown as? Teardown)?.outOfOrder()
            // After the kernel has answered.
            if operation == .deleteDeviceAsync { host.loop.later { host.kernel.addForeignDevice(0) } }
        }
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
        #expect(host.kernel.log.filter { $0 == "deleteDeviceAsync 0" }.count == 1)
        #expect(host.kernel.log.filter { $0 == "stopDevice 0" }.count == (operation == .stopDevice ? 2 : 1))
        #expect((host.kernel.devices[0] != nil) == (operation == .deleteDeviceAsync))
    }
}
