import BrokerInterface
import Glibc
import Policy
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("Memory disks and their limit")
struct MemoryDiskTests {
    private static let policy = "allow group=50 target=* memory-disks=96M max-devices=9\n"

    private func request(_ megabytes: UInt64) -> AddRequest {
        AddRequest(target: "memory", options: [OptionValue("size", "\(megabytes << 20)")])
    }

    private func park(_ socket: Int32) {
        let file = memfd_create("test", UInt32(MFD_CLOEXEC))
        defer { close(file) }
        _ = try? send(socket, [0], files: [file])
    }

    @Test("count from the moment of the request, so two adds at once do not both pass")
    func atOnce() throws {
        let host = try Host(policy: Self.policy)
        host.geometry.size = 64 << 20
        var socket: Int32?
        var answers: [InterfaceError?] = []
        // At each moment of the first one, from its request to its end.
        var counted: Set<UInt64> = []
        host.interfere = { (_, _) throws(SystemError) in
            counted.insert(host.broker.usage(of: 1000).diskBytes)
            return false
        }
        let first = host.broker.add(request(64), peer: Host.alice) { answer in
            switch answer {
            // Nothing is brought yet.
            case .files(_, let end): socket = end
            case .added: answers.append(nil)
            case .failed(let error): answers.append(error)
            }
        }
        try host.run { socket != nil }
        #expect(host.broker.usage(of: 1000).diskBytes == 64 << 20)
        guard case .failure(.quotaReached(let message, _, "memory-disks", 100_663_296, _)) = try host.add(request(64))
        else {
            Issue.record("the second one was added")
            return
        }
        #expect(message.contains("134217728 exceeds memory-disks=100663296"), "\(message)")
        _ = try host.add(request(32), parking: park).get()
        #expect(host.broker.usage(of: 1000).diskBytes == 96 << 20)
        let end = try #require(socket)
        park(end)
        close(end)
        try host.run { !answers.isEmpty }
        #expect(answers == [nil] && host.broker.usage(of: 1000).diskBytes == 96 << 20)
        withExtendedLifetime(first) {}
        #expect(counted == [96 << 20])
        #expect(host.broker.usage(of: 1001).diskBytes == 0)
        for id in [UInt32(0), 1] { #expect(try host.delete(id) == nil) }
        #expect(host.broker.usage(of: 1000).diskBytes == 0)
    }

    @Test("count as what was asked for and as what is served, and other devices not at all")
    func sizes() throws {
        let host = try Host(policy: Self.policy)
        host.geometry.size = 1 << 20
        _ = try host.add(AddRequest(target: "null", options: [OptionValue("size", "\(1 << 30)")])).get()
        #expect(host.broker.usage(of: 1000).diskBytes == 0)
        _ = try host.add(request(2), parking: park).get()
        #expect(host.broker.usage(of: 1000).diskBytes == 2 << 20)
        // As a later broker takes it from the record, also when it can't read the launch message.
        var record = try #require(host.broker.store.load().records.first { $0.device.id == 1 })
        #expect(ManagedDevice(record).diskBytes == 2 << 20)
        record.launch = nil
        #expect(ManagedDevice(record).diskBytes == 1 << 20)
    }

    @Test("are refused to users whose line does not say memory-disks")
    func without() throws {
        let host = try Host(policy: "allow group=50 target=*\n")
        guard case .failure(.quotaReached(_, _, "memory-disks", 0, _)) = try host.add(request(1)) else {
            Issue.record("it was added")
            return
        }
        try host.run { host.leftovers == [] }
    }
}
