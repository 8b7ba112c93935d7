import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("What systemd passes")
struct PassedDescriptorsTests {
    @Test("names of stored sockets are exact", arguments: ["ubd-3-17", "ubd-0-18446744073709551615"])
    func names(_ text: String) { #expect(StoredName(text[...])?.text == text) }

    @Test(
        "nothing else is such a name",
        arguments: [
            "", "ubd", "ubd-3", "ubd-3-", "ubd--17", "ubd-03-17", "ubd-3-017", "ubd-3-+17", "ubd-3-17-", "ubd-+3-17",
            "ubd-4294967296-1", "xbd-3-17", "ubd-3-18446744073709551616", " ubd-3-17", "ubd-3-17\n", "ubd-3-1\u{665}",
            "ubd-broker.socket",
        ])
    func noNames(_ text: String) { #expect(StoredName(text[...]) == nil) }

    @Test("the listening socket and stored ones are told apart by their names")
    func both() throws {
        let passed = try PassedDescriptors(
            count: "4", names: "ubd-1-9:ubd-broker.socket:ubd-2-8:ubd-1-9", listens: { _ in false })
        #expect(passed.listener == 4)
        #expect(passed.stored == [StoredName(id: 1, generation: 9): [3, 6], StoredName(id: 2, generation: 8): [5]])
        #expect(passed.foreign.isEmpty)
        #expect(try PassedDescriptors(count: "1", names: nil, listens: { _ in true }).listener == 3)
        #expect(try PassedDescriptors(count: "0", names: nil, listens: { _ in true }) == PassedDescriptors())
    }

    @Test("a stored socket with another name is not the listening one")
    func foreign() throws {
        let passed = try PassedDescriptors(
            count: "4", names: "stored:ubd-1-9:ubd-broker.socket:ubd-1-x", listens: { $0 == 5 })
        #expect(passed.listener == 5)
        #expect(
            passed.foreign == [
                PassedDescriptors.Foreign(name: "stored", descriptor: 3),
                PassedDescriptors.Foreign(name: "ubd-1-x", descriptor: 6),
            ])
        #expect(passed.stored.count == 1)
    }

    @Test(
        "what does not fit together is refused",
        arguments: [
            ("2", nil), ("2", "ubd-1-9"), ("1", "a:ubd-1-9"), ("2", "a:b"), ("x", "a"), ("+1", "a"), ("-1", "a"),
            ("65537", "a"), ("", ""),
        ] as [(String, String?)])
    func refused(_ count: String, _ names: String?) {
        for listens in [true, false] {
            #expect(throws: StartupRefusal.self) {
                try PassedDescriptors(count: count, names: names, listens: { _ in listens })
            }
        }
    }

    @Test(
        "the store has room only when systemd says how much, and else there is a reason",
        arguments: [
            (["NOTIFY_SOCKET": "/run/n", "FDSTORE": "7"], 7, nil),
            // All names come in one variable of the environment, which has a limit of 128 KiB.
            (["NOTIFY_SOCKET": "/run/n", "FDSTORE": "100000"], 4096, nil),
            (["FDSTORE": "7"], 0, "systemd did not start the broker"),
            (
                ["NOTIFY_SOCKET": "/run/n"], 0,
                "systemd offers no store: FileDescriptorStoreMax is not set, or systemd is too old"
            ),
            (
                ["NOTIFY_SOCKET": "/run/n", "FDSTORE": "-7"], 0,
                "systemd's FDSTORE is '-7', which is not a number above 0"
            ),
            (
                ["NOTIFY_SOCKET": "/run/n", "FDSTORE": "7x"], 0,
                "systemd's FDSTORE is '7x', which is not a number above 0"
            ),
        ] as [([String: String], Int, String?)])
    func offer(_ environment: [String: String], _ room: Int, _ problem: String?) {
        let offer = DescriptorStore.Offer { environment[$0] }
        #expect(offer == DescriptorStore.Offer(room: room, problem: problem))
    }
}

@Suite("systemd's store of descriptors")
struct DescriptorStoreTests {
    private final class Systemd {
        var messages: [String] = []
        /// What prevents a message to systemd.
        var errno: Int32?
    }

    private func make(
        _ systemd: Systemd, room: Int, passed: [StoredName: [Int32]] = [:], _ loop: EventLoop
    ) -> DescriptorStore {
        DescriptorStore(loop: loop, offer: .init(room: room), passed: passed) { message, descriptor in
            if let errno = systemd.errno { return SystemError("sendmsg", errno) }
            systemd.messages.append(message + (descriptor.map { " \($0)" } ?? ""))
            return nil
        }
    }

    private let one = StoredName(id: 1, generation: 9)
    private let two = StoredName(id: 2, generation: 8)

    private func inode(_ descriptor: Int32) -> UInt64 {
        var status = stat()
        #expect(fstat(descriptor, &status) == 0)
        return UInt64(status.st_ino)
    }

    private func isOpen(_ descriptor: Int32) -> Bool { fcntl(descriptor, F_GETFD) != -1 }

    @Test("a socket is stored once, and no more than there is room for")
    func room() throws {
        let systemd = Systemd()
        let store = make(systemd, room: 1, try EventLoop())
        store.keep(one) { 40 }
        store.keep(one) { 40 }
        store.keep(two) { 41 }
        #expect(store.drop(two).isEmpty)
        #expect(systemd.messages == ["FDSTORE=1\nFDNAME=ubd-1-9\nFDPOLL=0 40"])
        #expect(store.drop(one).isEmpty)
        store.keep(two) { 41 }
        #expect(
            systemd.messages.dropFirst() == [
                "FDSTOREREMOVE=1\nFDNAME=ubd-1-9", "FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 41",
            ])
    }

    @Test("without room nothing is said to systemd")
    func none() throws {
        let systemd = Systemd()
        make(systemd, room: 0, try EventLoop()).keep(one) { 40 }
        #expect(systemd.messages.isEmpty)
    }

    @Test("messages that systemd does not take come later, in their order, and with the socket that is there then")
    func later() throws {
        let systemd = Systemd()
        let loop = try EventLoop()
        let store = make(systemd, room: 4, loop)
        let three = StoredName(id: 3, generation: 7)
        systemd.errno = EAGAIN
        var sockets: [Int32?] = [40, 41]
        store.keep(one) { sockets[0] }
        store.keep(two) { sockets[1] }
        store.keep(three) { 42 }
        #expect(store.drop(three).isEmpty)
        sockets = [nil, 43]
        loop.after(milliseconds: 1) { systemd.errno = nil }
        loop.after(milliseconds: 120) { loop.stop() }
        try loop.run()
        #expect(systemd.messages == ["FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 43"], "a dropped one was never sent")
        #expect(store.names == [two])
        _ = store.drop(two)
        #expect(systemd.messages.last == "FDSTOREREMOVE=1\nFDNAME=ubd-2-8")
    }

    @Test("a socket that the kernel does not send is not in the store, and delays no other one")
    func refused() throws {
        let systemd = Systemd()
        let store = make(systemd, room: 4, try EventLoop())
        systemd.errno = ETOOMANYREFS
        store.keep(one) { 40 }
        #expect(store.names.isEmpty)
        systemd.errno = nil
        store.keep(one) { 40 }
        #expect(systemd.messages.isEmpty, "it is not tried again at each change of the device")
        store.keep(two) { 41 }
        _ = store.drop(one)
        store.keep(one) { 42 }
        #expect(
            systemd.messages == [
                "FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 41", "FDSTORE=1\nFDNAME=ubd-1-9\nFDPOLL=0 42",
            ])
    }

    @Test("a passed socket is taken by its name and inode only")
    func take() throws {
        let systemd = Systemd()
        let pair = try makeMessagePair()
        let passed = try FileDescriptor.duplicate(of: pair.first.raw).release()
        let store = make(systemd, room: 4, passed: [one: [passed]], try EventLoop())
        let wrongName = store.take(two, inode: inode(passed))?.raw
        #expect(wrongName == nil)
        let wrongInode = store.take(one, inode: inode(pair.second.raw))?.raw
        #expect(wrongInode == nil)
        let taken = store.take(one, inode: inode(passed))?.raw
        #expect(taken == passed)
        store.keep(one) { passed }
        #expect(systemd.messages.isEmpty, "it is in the store")
        #expect(store.settle { _ in .init(inode: 0, isHeld: true) }.isEmpty)
        #expect(systemd.messages.isEmpty && store.names == [one], "and stays there")
        let again = store.take(one, inode: 0)?.raw
        #expect(again == nil)
    }

    @Test("of passed sockets those without a device leave the store")
    func settle() throws {
        let systemd = Systemd()
        let pair = try makeMessagePair()
        let other = try makeMessagePair()
        let wanted = inode(pair.first.raw)
        let copies = [
            try FileDescriptor.duplicate(of: pair.first.raw).release(),
            try FileDescriptor.duplicate(of: other.first.raw).release(),
            try FileDescriptor.duplicate(of: other.second.raw).release(),
        ]
        let three = StoredName(id: 3, generation: 7)
        let store = make(
            systemd, room: 4, passed: [one: [copies[0]], two: [copies[1]], three: [copies[2]]], try EventLoop())
        let third = inode(copies[2])
        let needless = store.settle {
            $0 == one
                ? .init(inode: wanted, isHeld: true) : $0 == three ? .init(inode: third, isHeld: false) : nil
        }
        #expect(needless == [copies[1]])
        #expect(isOpen(copies[1]), "its close might be the last one, so it is the caller's")
        #expect(systemd.messages == ["FDSTOREREMOVE=1\nFDNAME=ubd-2-8"])
        #expect(!isOpen(copies[0]), "its device has it")
        let taken = store.take(three, inode: third)?.raw
        #expect(taken == copies[2], "its device may need it later")
        close(copies[1])
    }

    @Test("a passed socket with a device's name that is not the device's is no use, whether the device has one or not")
    func poisoned() throws {
        let systemd = Systemd()
        let pair = try makeMessagePair()
        let other = try makeMessagePair()
        let (right, held) = (inode(pair.first.raw), inode(pair.second.raw))
        let wrong = [
            try FileDescriptor.duplicate(of: other.first.raw).release(),
            try FileDescriptor.duplicate(of: other.second.raw).release(),
        ]
        let good = try FileDescriptor.duplicate(of: pair.first.raw).release()
        let store = make(systemd, room: 4, passed: [one: [wrong[0], good], two: [wrong[1]]], try EventLoop())
        let needless = store.settle { .init(inode: $0 == one ? right : held, isHeld: $0 == two) }
        #expect(needless.sorted() == wrong.sorted())
        #expect(systemd.messages == ["FDSTOREREMOVE=1\nFDNAME=ubd-2-8"])
        let taken = store.take(one, inode: right)?.raw
        #expect(taken == good)
        store.keep(two) { 41 }
        #expect(systemd.messages.last == "FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 41")
        for descriptor in wrong { close(descriptor) }
    }

    @Test("what a device had in the store and nobody took is the caller's when the device goes")
    func left() throws {
        let systemd = Systemd()
        let pair = try makeMessagePair()
        let passed = try FileDescriptor.duplicate(of: pair.first.raw).release()
        let store = make(systemd, room: 4, passed: [one: [passed]], try EventLoop())
        #expect(store.drop(one) == [passed] && isOpen(passed))
        #expect(systemd.messages == ["FDSTOREREMOVE=1\nFDNAME=ubd-1-9"])
        #expect(store.drop(one).isEmpty)
        close(passed)
    }
}
