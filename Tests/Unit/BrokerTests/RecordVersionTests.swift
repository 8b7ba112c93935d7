import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("A record")
struct RecordVersionTests {
    private static func sample() -> DeviceRecord {
        let device = Device {
            ($0.id, $0.generation, $0.owner, $0.target, $0.state) = (3, 7, 1000, "loop", .live)
            $0.node = "/dev/ublkb3"
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (4096, 512, 512)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
        }
        var record = DeviceRecord(step: .live, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        record.file = FileIdentity(device: .max, inode: 1 << 63, born: 1)
        record.parked = 4711
        return record
    }

    /// As ubd 0.1.0 wrote it before there were manifests (f99e5e6), except for the pids.
    private static let old = #"""
        {"version":1,"step":"live","device":{"id":3,"generation":17,"owner":1000,"target":"loop",\#
        "state":"live","node":"/dev/ublkb3","link":"/dev/ubdb3","sizeBytes":1073741824,"blockSize":512,\#
        "physicalBlockSize":4096,"readOnly":true,"queues":2,"depth":128,"maxIOBytes":524288,"mode":"copy",\#
        "buffered":true,"recovery":"queue","ioTimeout":7,"deaths":2,"lastDeath":"killed by SIGSEGV",\#
        "since":1790000001,"file":"1.img","workerPid":4711,"workerUid":1879048192,"workerVersion":"0.1.0",\#
        "workerOutdated":true,"cpus":"0-1,3","created":1790000000},"memoryBytes":1048576,\#
        "recoveryStarted":false,"recoveryAnswered":false,\#
        "launch":"01444255020000000300800000000800030000000010000000001000000000000000000000000000",\#
        "file":{"device":-5,"inode":6,"born":7},"sockets":{"control":11,"parking":12},"worker":{"pid":99999,\#
        "startTime":99,"uid":1879048192}}
        """#

    private func read(_ text: String) -> DeviceRecord? { DeviceRecord(bytes: Array(text.utf8)) }
    private let text = String(decoding: sample().bytes, as: UTF8.self)

    @Test("is read as it was written")
    func roundTrip() { #expect(read(text) == Self.sample()) }

    @Test("of a later broker that knows more is read, in the device too")
    func later() {
        let later = text.replacing("{\"version\":1,", with: "{\"version\":1,\"colour\":\"green\",")
            .replacing("\"device\":{", with: "\"device\":{\"colour\":\"green\",")
        #expect(later != text)
        #expect(read(later) == Self.sample())
    }

    @Test("of an earlier broker that knew less is read")
    func earlier() {
        let parts = text.components(from: ",\"file\":{", to: "}")
        #expect(read(parts)?.file == FileIdentity.none)
        #expect(read(text.replacing(",\"parked\":4711", with: ""))?.parked == nil)
        #expect(read(text.replacing("\"parked\":4711", with: "\"parked\":-1"))?.parked == nil)
        #expect(read(parts)?.device == Self.sample().device)
    }

    @Test("whose launch message is of another version costs the device its next worker, not the present one")
    func launch() {
        let other = text.replacing("\"launch\":\"", with: "\"launch\":\"00")
        #expect(read(other)?.launch == nil)
        #expect(read(other)?.device == Self.sample().device)
    }

    @Test("of the version before has its launch message, and is written with it as it was")
    func before() throws {
        let record = try #require(read(Self.old))
        let launch = try #require(record.launch)
        #expect(launch.target == .loop && launch.layout == .fixed && launch.queues == 3)
        #expect(launch.options.buffered && launch.options.offset == 1 << 20 && launch.options.blockSize == 4096)
        #expect(launch.options.size == nil && launch.flags == .readOnly)
        #expect(String(decoding: record.bytes, as: UTF8.self) == Self.old)
    }

    @Test(
        "of the version before brings its device another worker, which is told what the first one was, in the old layout"
    )
    func takenOver() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        host.geometry = Geometry(size: 1 << 30, logicalBlock: 512, physicalBlock: 4096, attributes: .readOnly)
        host.geometry.file = FileIdentity(device: UInt64(bitPattern: -5), inode: 6, born: 7)
        try host.broker.store.write(try #require(read(Self.old)))
        host.kernel.addDevice(3, generation: 17, state: .quiesced, pid: -1)
        try host.broker.reconcile()
        try host.run { host.broker.devices[3]?.waitsForFile == true }
        var answers: [ClientAnswer] = []
        let operation = host.broker.recover(RecoverRequest(id: 3), peer: Host.alice) { answer in
            if case .files(let count, let socket) = answer {
                // The disk uses the page cache, so there is no second descriptor.
                #expect(count == 1)
                _ = try? send(socket, [0], files: [0])
                close(socket)
            }
            answers.append(answer)
        }
        try host.run { answers.count == 2 }
        guard case .added(let device, _)? = answers.last else {
            Issue.record("\(answers)")
            return
        }
        #expect(device.state == .live)
        let told = try #require(host.workers.last?.launch)
        #expect(told.layout == .fixed && told.options.size == 1 << 30 && told.options.offset == 1 << 20)
        #expect(try host.broker.store.load().records.first?.launch?.layout == .fixed)
        withExtendedLifetime(operation) {}
    }

    @Test("of a version that earlier brokers would misunderstand is none")
    func incompatible() { #expect(read(text.replacing("\"version\":1", with: "\"version\":2")) == nil) }
}

extension String {
    /// Without the first piece that begins and ends so.
    fileprivate func components(from start: String, to end: String) -> String {
        guard let first = firstRange(of: start), let last = self[first.upperBound...].firstRange(of: end) else {
            return self
        }
        return String(self[..<first.lowerBound] + self[last.upperBound...])
    }
}
