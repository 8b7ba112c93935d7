import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("What a request for another size hears, and what its failure leaves behind")
struct ResizeRequestTests {
    /// A host with a live device 0 of 1 MiB; its next workers make a disk of `next` bytes.
    private func host(_ request: AddRequest = AddRequest(target: "null"), next: UInt64 = 2 << 20) throws -> Host {
        let host = try Host()
        host.kernel.features = [.perIODaemon, .quiesce, .updateSize]
        _ = try host.add(request).get()
        host.geometry.size = next
        host.kernel.beforeAnswer[.getDeviceInfo] = { host.kernel.quiesce(0) }
        return host
    }

    private func resize(_ host: Host, to bytes: Int64?, shrink: Bool? = nil) throws -> Result<
        ResizeReply, InterfaceError
    > {
        var result: Result<ResizeReply, InterfaceError>?
        host.broker.resize(ResizeRequest(id: 0, sizeBytes: bytes, shrink: shrink), peer: Host.alice) { result = $0 }
        try host.run { result != nil }
        return try #require(result)
    }

    @Test(
        "a size that is no whole number of blocks is refused before a worker starts, with the sizes on both sides",
        arguments: [(100, "give 512;"), (513, "give 512 or 1024;"), (2_097_151, "give 2096640 or 2097152;")])
    func unaligned(_ bytes: Int64, _ remedy: String) throws {
        let host = try host()
        for shrink in [nil, true] as [Bool?] {
            let error = #expect(throws: InterfaceError.self) { try resize(host, to: bytes, shrink: shrink).get() }
            #expect(error?.name == "io.ubd.Broker.InvalidOption")
            #expect(error?.message == "sizeBytes can not be \(bytes): it is not a multiple of the block size 512")
            #expect(error?.remedy.hasPrefix(remedy) == true && error?.remedy.contains("K, M, G or T") == true)
        }
        #expect(host.workers.count == 1 && host.kernel.sectors == [:])
    }

    @Test(
        "a worker that makes another disk than was asked for is not told as a success", arguments: [2, 3] as [UInt64])
    func lyingWorker(_ halves: UInt64) throws {
        // One MiB, as before; and one and a half.
        let host = try host(next: halves << 19)
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 4 << 20).get() }
        #expect(error?.message.contains("announced a disk of") == true)
        let device = try #require(host.broker.devices[0])
        #expect(device.info.sizeBytes == 1 << 20 && device.worker === host.workers[0] && host.kernel.sectors == [:])
        #expect(host.workers.last?.serve == nil)
    }

    /// The rehearsal ends with this failure of its worker.
    private func failure(_ failure: WorkerFailure, _ request: AddRequest = AddRequest(target: "null")) throws
        -> InterfaceError?
    {
        let host = try host(request)
        host.faultOf = { _ in .refusesFile }
        host.failure = failure
        return #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
    }

    @Test("a lock that the kernel does not give is not told as another's")
    func lockless() throws {
        let error = try failure(WorkerFailure(.bytesInUse, errno: ENOLCK))
        #expect(error?.name == "io.ubd.Broker.Failed" && error?.message.contains("can not be told") == true)
        #expect(try failure(WorkerFailure(.bytesInUse))?.name == "io.ubd.Broker.Busy")
    }

    @Test("a file that ends before the device begins is told with what helps: resize has no offset to give")
    func fileGone() throws {
        let error = try failure(WorkerFailure(.offsetBeyondEnd, detail: 4096))
        #expect(error?.message.contains("where the device begins") == true)
        #expect(error?.remedy.contains("truncate -s 1048576 FILE") == true && error?.remedy.contains("offset") == false)
    }

    @Test("meanwhile the device says that it is being resized, and not that a newer worker comes")
    func reason() throws {
        let host = try host()
        var reason: String?
        host.kernel.beforeAnswer[.startUserRecovery] = { reason = host.broker.devices[0]?.info.reason }
        _ = try resize(host, to: 2 << 20).get()
        #expect(reason == "it is being resized: its worker is being replaced")
        #expect(host.broker.devices[0]?.info.reason == nil)
    }

    @Test("a worker that does not die is said to have been killed for another size")
    func stuck() throws {
        let host = try host()
        host.workers[0].survivesKill = true
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(error?.message.contains("was killed to give the device another size") == true)
    }

    @Test("what a resize has locked before the kernel refused it is unlocked by the next worker, and the size stays")
    func unlocks() throws {
        let host = try host()
        host.kernel.failures[.updateSize] = EINVAL
        #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        host.kernel.failures[.updateSize] = nil
        host.geometry.size = 1 << 20
        let before = host.workers.count
        host.workers.last?.die(.killed(signal: SIGKILL))
        try host.run { host.workers.count == before + 1 && host.broker.devices[0]?.info.state == .live }
        let launch = host.workers.last?.launch
        #expect(launch?.flags.contains(.releasesBytes) == true && launch?.options.size == 1 << 20)
        // It was told as failed, so it does not happen later.
        #expect(host.kernel.sectors == [:] && host.broker.devices[0]?.info.sizeBytes == 1 << 20)
        #expect(host.broker.devices[0]?.info.deaths == 1)
    }
}
