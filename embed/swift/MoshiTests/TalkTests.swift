import Foundation
import MoshiTalk
import Testing

@Suite struct TalkTests {
  @Test func framesAreCut() {
    var cutter = FrameCutter(frameSize: 4)
    #expect(cutter.push([1, 2, 3]) == [])
    #expect(cutter.push([4, 5, 6, 7, 8, 9]) == [[1, 2, 3, 4], [5, 6, 7, 8]])
    #expect(cutter.finish() == [9, 0, 0, 0])
    #expect(cutter.finish() == nil)
  }

  @Test func lateReadersLoseTheOldest() {
    var queue = FrameQueue(most: 2)
    for n in 0..<5 { queue.push([Float(n)]) }
    #expect(queue.dropped == 3)
    #expect(queue.pop() == [3])
    #expect(queue.pop() == [4])
    #expect(queue.pop() == nil)
  }

  @Test func levels() {
    #expect(level([Float]()) == 0)
    #expect(level([0, 0]) == 0)
    #expect(level([1, -1]) == 1)
    #expect(abs(level([0.1, -0.1]) - 2 / 3) < 1e-3)
    #expect(level([.nan]) == 0)
  }

  @Test func wavesComeBack() throws {
    let wave = Wave(sampleRate: 24_000, samples: [0, 0.5, -0.5, 1, -1, 3])
    let again = try Wave(wave.data)
    #expect(again.sampleRate == 24_000)
    #expect(zip(again.samples, [0, 0.5, -0.5, 1, -1, 1]).allSatisfy { abs($0 - $1) < 1e-4 })
    #expect(throws: Wave.Failure.notWave) { try Wave(Data("hello".utf8)) }
    for length in 0..<wave.data.count { _ = try? Wave(wave.data.prefix(length)) }
  }
}

@Suite struct TalkStateTests {
  @Test func aScreenKeepsTheLastWords() {
    var transcript = Transcript(most: 5)
    for word in ["a", "bc", "", "défg"] { transcript.append(word) }
    #expect(transcript.text == "cdéfg")
    transcript.clear()
    #expect(transcript.text == "")
  }

  @Test func anInterruptionKeepsMute() {
    let events: [TalkState.Event] = [.start, .loaded, .mute(true), .interrupt, .resume]
    #expect(events.reduce(TalkState.idle) { $0.after($1) } == .talking(muted: true))
    #expect(!TalkState.talking(muted: true).hears)
    #expect(TalkState.talking(muted: false).hears)
  }

  @Test func whatMeansNothingChangesNothing() {
    for state in [TalkState.idle, .loading] {
      for event in [TalkState.Event.resume, .interrupt, .mute(true)] { #expect(state.after(event) == state) }
    }
    #expect(TalkState.talking(muted: false).after(.fail("no memory")) == .failed("no memory"))
    #expect(TalkState.failed("no memory").after(.start) == .loading)
    #expect(!TalkState.failed("x").runs)
  }
}
