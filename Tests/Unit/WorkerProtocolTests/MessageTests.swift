import KernelABI
import Targets
import Testing

@testable import WorkerProtocol

@Suite("Messages between broker and worker")
struct MessageTests {
    static let launch: LaunchMessage = {
        var launch = LaunchMessage(
            target: .loop, queues: 3, depth: 128, maxIOBytes: 524_288, flags: [.readOnly, .allowOther])
        launch.options.offset = 1 << 40
        launch.options.size = 8192
        launch.options.blockSize = 4096
        launch.options.buffered = true
        return launch
    }()
    static let geometry = Geometry(
        size: 1 << 30, logicalBlock: 4096, physicalBlock: 8192, attributes: [.readOnly, .directRefused],
        discardGranularity: 4096, maxDiscardSectors: 8, maxWriteZeroesSectors: 16)
    static let worker: [WorkerMessage] = [
        .geometry(geometry), .sealed([.rings, .landlock]),
        .failed(WorkerFailure(.blockSizeTooSmall, errno: 22, detail: 4096)),
    ]

    static func launch(_ layout: LaunchMessage.Layout) -> LaunchMessage {
        var message = launch
        message.layout = layout
        return message
    }

    @Test("a launch message survives the way", arguments: LaunchMessage.Layout.allCases)
    func launchRoundTrip(layout: LaunchMessage.Layout) {
        let message = Self.launch(layout)
        #expect(LaunchMessage(decoding: message.encoded()) == message)
        for target in TargetList.all {
            let plain = LaunchMessage(target: target, queues: 1, depth: 1, maxIOBytes: 4096)
            #expect(LaunchMessage(decoding: plain.encoded()) == plain)
        }
    }

    @Test("a launch message with more queues than there may be connections is refused")
    func launchConnections() {
        func decoded(_ queues: UInt16, _ layout: LaunchMessage.Layout) -> LaunchMessage? {
            LaunchMessage(
                decoding: LaunchMessage(target: .nbd, queues: queues, depth: 1, maxIOBytes: 4096, layout: layout)
                    .encoded())
        }
        for layout in LaunchMessage.Layout.allCases {
            #expect(decoded(16, layout)?.descriptors == 16...16)
            #expect(decoded(17, layout) == nil)
        }
    }

    @Test("a launch message of any other length is refused", arguments: LaunchMessage.Layout.allCases)
    func launchLength(layout: LaunchMessage.Layout) {
        let bytes = Self.launch(layout).encoded()
        for count in 0..<bytes.count { #expect(LaunchMessage(decoding: Array(bytes[..<count])) == nil) }
        #expect(LaunchMessage(decoding: bytes + [0]) == nil)
    }

    /// Written by ubd 0.1.0 as it was before the manifests (f99e5e6), for `-t loop -q 3 -d 128 --read-only --buffered --offset 1T
    /// --size 8192 --block-size 4096` of a user with allow-other-fs.
    static let old: [UInt8] = [
        0x01, 0x44, 0x42, 0x55, 2, 0, 0, 0, 3, 0, 128, 0, 0, 0, 8, 0, 0x07, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0,
        0, 0,
        0x20, 0, 0, 0, 0, 0, 0,
    ]

    @Test("a launch message of the version before is read, and written again as it was: its worker knows no other")
    func oldLaunch() {
        let message = LaunchMessage(decoding: Self.old)
        #expect(message == Self.launch(.fixed))
        #expect(message?.encoded() == Self.old)
    }

    /// The launch message of this version. It must not change: the next version could not adopt its devices.
    @Test("a launch message has each option by its number")
    func newLaunch() {
        #expect(
            Self.launch.encoded() == [
                0x03, 0x44, 0x42, 0x55, 2, 0, 0, 0, 3, 0, 128, 0, 0, 0, 8, 0, 0x05, 0, 0, 0, 4, 0,
                1, 0, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 8, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
                3, 0, 8, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            ])
    }

    @Test("options that the target has not, that come twice or out of order, or that can not be are refused")
    func badOptions() {
        let one: [UInt8] = [1, 0, 8, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]
        let two: [UInt8] = [2, 0, 8, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]
        let head = Array(Self.launch.encoded().prefix(20))
        func accepted(_ count: UInt8, _ options: [UInt8]) -> Bool {
            LaunchMessage(decoding: head + [count, 0] + options) != nil
        }
        #expect(accepted(1, one) && accepted(2, one + two) && accepted(0, []))
        #expect(
            !accepted(2, two + one) && !accepted(2, one + one) && !accepted(1, one + two) && !accepted(3, one + two))
        var other = one
        other[0] = 99
        #expect(!accepted(1, other))
        // Not a multiple of 512.
        other = one
        other[4] = 1
        #expect(!accepted(1, other))
        #expect(!accepted(1, [1, 0, 4, 0, 0, 0x20, 0, 0]))
        // A null disk has no offset.
        var null = head
        null[4] = 1
        #expect(LaunchMessage(decoding: null + [1, 0] + one) == nil)
        #expect(LaunchMessage(decoding: null + [1, 0] + two) != nil)
        // A flag of the old layout is an option here.
        var flagged = Self.launch.encoded()
        flagged[16] |= 2
        #expect(LaunchMessage(decoding: flagged) == nil)
        // The old layout has the same bounds.
        var old = Self.old
        old[32] = 1
        #expect(LaunchMessage(decoding: old) == nil)
    }

    @Test("text in an option is bounded, valid and without control characters")
    func text() {
        let option = TargetOption(18, name: "export", kind: .text(1...8), help: "")
        let target = TargetManifest(
            name: "t", number: 9, summary: "", options: [option], modes: [.copy], submissions: Submissions(),
            survival: .nothing)
        func read(_ text: [UInt8]) -> DeviceOptions? {
            var writer = ByteWriter()
            writer.put(UInt16(1))
            writer.put(option.number)
            writer.put(UInt16(text.count))
            for byte in text { writer.put(byte) }
            var reader = ByteReader(writer.bytes)
            guard let options = DeviceOptions(from: &reader, of: target), target.accepts(options) else { return nil }
            var again = ByteWriter()
            options.encode(to: &again)
            #expect(again.bytes == writer.bytes)
            return options
        }
        #expect(read(Array("größe".utf8))?[18] == .text("größe"))
        for bad in [[], Array("123456789".utf8), Array("a\nb".utf8), [0xff], [0]] as [[UInt8]] {
            #expect(read(bad) == nil)
        }
    }

    @Test("the longest launch message of each target fits")
    func longest() {
        for target in TargetList.all {
            var message = LaunchMessage(target: target, queues: 1, depth: 1, maxIOBytes: 4096)
            for option in target.options {
                if case .text(let lengths) = option.kind {
                    message.options[option.number] = .text(String(repeating: "x", count: lengths.upperBound))
                } else {
                    message.options[option.number] = .number(.max)
                }
            }
            #expect(message.encoded().count <= LaunchMessage.longest)
        }
    }

    @Test("a launch message without queues, depth or request size is refused")
    func launchZeros() {
        var message = Self.launch
        message.queues = 0
        #expect(LaunchMessage(decoding: message.encoded()) == nil)
        message = Self.launch
        message.depth = 0
        #expect(LaunchMessage(decoding: message.encoded()) == nil)
        message = Self.launch
        message.maxIOBytes = 0
        #expect(LaunchMessage(decoding: message.encoded()) == nil)
    }

    @Test("a launch message for an unknown target is refused")
    func launchTarget() {
        var bytes = Self.launch.encoded()
        bytes[4] = 99
        #expect(LaunchMessage(decoding: bytes) == nil)
    }

    @Test("no kind of message passes for another")
    func kinds() {
        let serve = ServeMessage().encoded()
        let launch = Self.launch.encoded()
        #expect(ServeMessage(decoding: serve) == ServeMessage())
        #expect(ServeMessage(decoding: launch) == nil)
        #expect(LaunchMessage(decoding: serve) == nil)
        #expect(WorkerMessage(decoding: serve) == nil)
        #expect(WorkerMessage(decoding: launch) == nil)
        for message in Self.worker {
            #expect(ServeMessage(decoding: message.encoded()) == nil)
            #expect(LaunchMessage(decoding: message.encoded()) == nil)
        }
        #expect(ServeMessage(decoding: serve + [0]) == nil)
        #expect(ServeMessage(decoding: Array(serve.dropLast())) == nil)
    }

    @Test("the processors of each queue survive the way, and sets that do not fit together are left out")
    func affinity() {
        let message = ServeMessage(affinity: [[1, 2], [3, .max], [0, 1 << 63]])
        #expect(ServeMessage(decoding: message.encoded()) == message)
        #expect(ServeMessage(affinity: [[1], [1, 2]]).affinity == [])
        #expect(ServeMessage(affinity: [[], []]).affinity == [])
        let large = [[UInt64]](repeating: [UInt64](repeating: 1, count: 64), count: 100)
        #expect(ServeMessage(affinity: large).affinity == [])
        let bytes = message.encoded()
        for count in 0..<bytes.count { #expect(ServeMessage(decoding: Array(bytes[..<count])) == nil) }
        var other = bytes
        other[4] = 2
        #expect(ServeMessage(decoding: other) == nil)
    }

    @Test("what a worker says survives the way", arguments: worker)
    func workerRoundTrip(message: WorkerMessage) {
        #expect(WorkerMessage(decoding: message.encoded()) == message)
        #expect(message.encoded().count <= longestWorkerMessage)
    }

    @Test("a worker's message of any other length or kind is refused", arguments: worker)
    func workerLength(message: WorkerMessage) {
        let bytes = message.encoded()
        for count in 0..<bytes.count { #expect(WorkerMessage(decoding: Array(bytes[..<count])) == nil) }
        #expect(WorkerMessage(decoding: bytes + [0]) == nil)
        for position in 0..<4 {
            var other = bytes
            other[position] ^= 0x80
            #expect(WorkerMessage(decoding: other) == nil)
        }
    }

    @Test("a failure with an unknown step or a negative errno is refused")
    func failureBounds() {
        let bytes = WorkerMessage.failed(WorkerFailure(.fetch, errno: 5, detail: 1)).encoded()
        var other = bytes
        other[4] = 200
        #expect(WorkerMessage(decoding: other) == nil)
        other = bytes
        other[11] = 0xff
        #expect(WorkerMessage(decoding: other) == nil)
    }

    @Test("every step of a failure has its own number")
    func failureSteps() {
        for step in WorkerFailure.Step.allCases {
            let message = WorkerMessage.failed(WorkerFailure(step))
            #expect(WorkerMessage(decoding: message.encoded()) == message)
        }
    }
}

@Suite("A worker's geometry is not believed")
struct GeometryBoundsTests {
    private func accepted(_ change: (inout Geometry) -> Void) -> Bool {
        var geometry = MessageTests.geometry
        change(&geometry)
        return WorkerMessage(decoding: WorkerMessage.geometry(geometry).encoded()) != nil
    }

    @Test("the sample itself is accepted, with a backing device too")
    func sample() {
        #expect(accepted { _ in })
        #expect(
            accepted {
                $0.backingMajor = 259
                $0.backingMinor = 3
            })
    }

    @Test("block sizes outside the rules are refused")
    func blocks() {
        for size: UInt32 in [0, 1, 511, 513, 8192, 1 << 31] { #expect(!accepted { $0.logicalBlock = size }) }
        for size: UInt32 in [0, 512, 4095, 1 << 21] { #expect(!accepted { $0.physicalBlock = size }) }
    }

    @Test("sizes that are no blocks, or too large, are refused")
    func sizes() {
        for size: UInt64 in [0, 1, 4095, 1 << 63, .max] { #expect(!accepted { $0.size = size }) }
    }

    @Test("a discard that does not fit together is refused")
    func discard() {
        #expect(!accepted { $0.discardGranularity = 512 })
        #expect(!accepted { $0.discardGranularity = 0 })
        #expect(!accepted { $0.maxDiscardSectors = 0 })
        #expect(
            accepted {
                $0.discardGranularity = 0
                $0.maxDiscardSectors = 0
            })
    }

    @Test("unknown attributes are refused")
    func attributes() {
        #expect(!accepted { $0.attributes = Geometry.Attributes(rawValue: 1 << 11) })
        let obstacles = (0..<8).filter { value in
            accepted { $0.attributes = Geometry.Attributes(rawValue: UInt32(value) << 8) }
        }
        #expect(obstacles.count == Geometry.DirectObstacle.allCases.count)
    }
}

@Suite("The sandbox bundle")
struct SandboxBundleTests {
    static let bundle = SandboxBundle(
        setupFilter: [1, 2, 3], loopFilter: [UInt64.max],
        ring: RingSeal(operations: [46, 22], registerOperations: [12], flagsAllowed: 4, flagsRequired: 1))

    @Test("survives the way")
    func roundTrip() {
        #expect(SandboxBundle(decoding: Self.bundle.encoded()) == Self.bundle)
    }

    @Test("of any other length is refused")
    func length() {
        let bytes = Self.bundle.encoded()
        for count in 0..<bytes.count { #expect(SandboxBundle(decoding: Array(bytes[..<count])) == nil) }
        #expect(SandboxBundle(decoding: bytes + [0]) == nil)
    }

    @Test("with a ring for sockets survives the way too, and is refused when that ring has no operations")
    func sockets() {
        var bundle = Self.bundle
        bundle.socketRing = RingSeal(
            operations: [2, 22], registerOperations: [12], flagsAllowed: 0, flagsRequired: 1)
        let bytes = bundle.encoded()
        #expect(SandboxBundle(decoding: bytes) == bundle)
        // What a worker without sockets is given begins the same way.
        let plain = Self.bundle.encoded().count
        #expect(Array(bytes[..<plain]) == Self.bundle.encoded())
        for count in plain + 1..<bytes.count { #expect(SandboxBundle(decoding: Array(bytes[..<count])) == nil) }
        bundle.socketRing?.operations = []
        #expect(SandboxBundle(decoding: bundle.encoded()) == nil)
        bundle.socketRing?.operations = [2]
        bundle.socketRing?.registerOperations = []
        #expect(SandboxBundle(decoding: bundle.encoded()) == nil)
    }

    @Test("without a filter, operations, or register operations is refused: that would be no wall")
    func empty() {
        let emptied: [(inout SandboxBundle) -> Void] = [
            { $0.setupFilter = [] }, { $0.loopFilter = [] }, { $0.ring.operations = [] },
            { $0.ring.registerOperations = [] },
        ]
        for change in emptied {
            var bundle = Self.bundle
            change(&bundle)
            #expect(SandboxBundle(decoding: bundle.encoded()) == nil)
        }
    }

    @Test("with a program longer than the kernel takes is refused")
    func tooLong() {
        var bundle = Self.bundle
        bundle.loopFilter = [UInt64](repeating: 0, count: 4096)
        #expect(SandboxBundle(decoding: bundle.encoded()) == bundle)
        bundle.loopFilter.append(0)
        #expect(SandboxBundle(decoding: bundle.encoded()) == nil)
    }
}
