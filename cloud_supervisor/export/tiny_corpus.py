"""The text that the tests' tokenizer is trained on: enough for some 250 merges, and ours."""

CORPUS = """\
A small model writes on the device, a large model watches from the cloud. The small one is quick and often right.
The large one is slow, far away and nearly always right. Most of the words that the small one writes are the words
that the large one would have written, so most of the time there is nothing to say. Where the small model is unsure,
the device asks. The cloud reads the tokens that it has not read yet, and answers with a verdict: so many of them
stand, and here is the token that should have come next. The device takes the answer and writes on from there.

Drafting does not stop while a question is on its way. The next tokens are written at once, and if the answer agrees
with them nothing was lost. If it does not, they are thrown away, and the text goes on from the token of the cloud.
What was shown as final is never taken back without saying so. When the network is gone the device can stop and wait,
or it can write on alone and mark every token that nobody has checked.

def add(left, right):
    return left + right

def count_words(text):
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts

class Session:
    def __init__(self, prompt):
        self.tokens = list(prompt)
        self.position = len(self.tokens)

    def append(self, token):
        self.tokens.append(token)
        self.position += 1
        if self.position != len(self.tokens):
            raise ValueError("the position and the tokens do not agree")
        return self.position

for number in range(10):
    if number % 2 == 0:
        print(number, "is even")
    else:
        print(number, "is odd")

What is the time? It is ten to three. How many tokens are there in this sentence? There are more than there are words,
because a rare word is cut into pieces. Which river runs through the city? The one that the city was named after.
Write a function that returns the largest number of a list. Explain in one sentence why the sky is blue. Count from
one to twelve: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12. The answer is 42. Thank you, that was all for today.
"""
