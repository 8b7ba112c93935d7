import BrokerInterface
import Glibc
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

/// Each refusal of a device's operations in each state, with what the broker says is to be done. That is then looked at:
/// a remedy that does not help fails the test, and so does one that this table does not know.
@Suite("What the broker says is to be done")
struct RemedyTests {
    enum Situation: String, CaseIterable {
        case live, failed, failedInPlace, waiting, waitingWithoutRecord, replacing, unmanaged, stuck, deleting

        /// Only a device with a file waits for it: others get their next worker at once.
        var targets: [String] { [.waiting, .waitingWithoutRecord].contains(self) ? ["loop"] : ["null", "loop"] }
    }

    private func host(_ situation: Situation, target: String) throws -> Host {
        let host = try Host()
        let recovery = situation == .failedInPlace ? "fail" : situation == .failed ? "none" : "reissue"
        host.kernel.features = [.perIODaemon]
        _ = try host.add(AddRequest(target: "null", recovery: recovery)).get()
        let device = try #require(host.broker.devices[0])
        device.info.target = target
        device.info.file = target == "loop" ? "1.img" : nil
        device.file = target == "loop" ? FileIdentity(device: 2, inode: 3, born: 4) : .none
        func lose(_ state: DeviceState) {
            device.worker = nil
            device.parking = nil
            device.setState(state, reason: "a test")
        }
        switch situation {
        case .live: break
        case .failed, .failedInPlace: lose(.failed)
        case .waiting: lose(.recovering)
        case .waitingWithoutRecord:
            lose(.recovering)
            device.launch = nil
        case .replacing:
            device.setState(.recovering)
            device.parking = try FileDescriptor.null()
        case .unmanaged: device.setState(.unmanaged)
        case .stuck: device.setState(.stuck, reason: "a test")
        case .deleting: device.setState(.deleting)
        }
        return host
    }

    @Test("applies in every state of every target", arguments: Situation.allCases)
    func states(_ situation: Situation) throws {
        for target in situation.targets {
            let host = try host(situation, target: target)
            for error in try refusals(host) {
                let device = try #require(host.broker.devices[0]).info
                let what = "\(target), \(situation): \(error.message); \(error.remedy)"
                let known = Self.advice.filter { error.remedy.contains($0.text) }
                #expect(!known.isEmpty, "not in this table: \(what)")
                for (_, applies) in known { #expect(applies(situation, device), "\(what)") }
            }
        }
    }

    /// The answers of recover and upgrade; none for an operation that has begun.
    private func refusals(_ host: Host) throws -> [InterfaceError] {
        var errors: [InterfaceError] = []
        if host.broker.devices[0]?.info.state != .live {
            host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
                if case .failure(let error) = result { errors.append(error) }
            }
        }
        let operation = host.broker.recover(RecoverRequest(id: 0), peer: Host.alice) { answer in
            switch answer {
            case .failed(let error): errors.append(error)
            case .files(_, let parking): close(parking)
            case .added: break
            }
        }
        operation?.clientGone()
        return errors
    }

    private static let advice: [(text: String, applies: @Sendable (Situation, Device) -> Bool)] = [
        ("and add it again", { situation, _ in [.failed, .failedInPlace, .waitingWithoutRecord].contains(situation) }),
        ("is added anew", { situation, _ in [.unmanaged, .stuck, .deleting].contains(situation) }),
        ("reopen its file first", { situation, _ in situation == .waiting }),
        ("nothing to recover", { situation, _ in ![.failed, .failedInPlace, .waiting].contains(situation) }),
        ("wait for it", { situation, _ in situation == .replacing }),
        ("try again when it is live", { situation, _ in situation == .replacing }),
        ("try again a little later", { situation, _ in [.replacing, .deleting].contains(situation) }),
        ("name its file", { situation, device in situation == .waiting && device.target == "loop" }),
    ]

    @Test("a device that failed is deleted by what is said of it, and its number is free again")
    func failedIsDeleted() throws {
        for situation in [Situation.failed, .failedInPlace] {
            let host = try host(situation, target: "null")
            let error = try #require(refusals(host).last)
            #expect(error.remedy == "delete it ('ubd del -n 0') and add it again")
            #expect(try host.delete(0) == nil)
            _ = try host.add(AddRequest(target: "null", id: 0)).get()
        }
    }

    @Test("a node that is something else is named, and its remedy is not the log")
    func foreignNode() throws {
        let error = StartErrors.notPublished(7, "/dev/ublkb7", SystemError("x", ENODEV))
        #expect(error.message.hasPrefix("/dev/ublkb7 is something else"))
        #expect(error.remedy.contains("remove it") && error.remedy.contains("-n"))
        let host = try Host()
        host.kernel.leavesForeignNode = true
        let result = try host.add(AddRequest(target: "null"))
        guard case .failure(let told) = result else {
            Issue.record("it was added")
            return
        }
        #expect(told.message.contains("is something else than the device"))
    }
}
